#!/bin/sh
# Builds one image, from Debian's packages only, that replaces the official images of Python, Redis and PostgreSQL where no
# registry of images can be reached: tests/compose_stack/stand_in.sh [IMAGE]. As root; needs mmdebstrap, and podman or docker.
set -eu
image=${1:-localhost/gated-backfill-stand-in:local}
engine=docker
"$engine" info > /dev/null 2>&1 || engine=podman
here=$(dirname "$0")

# The build's pip gets this machine's settings, such as a package index and the authorities that it is trusted by.
mmdebstrap --variant=apt --mode=root \
    --include=ca-certificates,python3,python3-pip,python3-venv,python-is-python3,redis-server,postgresql \
    --customize-hook='chroot "$1" install -d -o redis -g redis /data' \
    --customize-hook='chroot "$1" install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data' \
    --customize-hook="install -m 0755 '$here/stand_in_postgres.sh' \"\$1/usr/local/bin/stand-in-postgres\"" \
    --customize-hook='for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do [ ! -e "$file" ] || cp "$file" "$1$file"; done' \
    bookworm - |
    "$engine" import \
        --change 'ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin PIP_CERT=/etc/ssl/certs/ca-certificates.crt' \
        --change 'CMD ["stand-in-postgres"]' - "$image"
