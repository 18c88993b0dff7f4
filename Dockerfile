# Two images: `app` runs all services of this project, `emulator` replaces BigQuery for trials. Health checks are in docker-compose.yml.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp
# The id is fixed, so that files on a volume keep their owner when the image changes.
RUN groupadd --gid 10001 backfill \
    && useradd --uid 10001 --gid backfill --no-create-home --home-dir /tmp --shell /usr/sbin/nologin backfill

FROM base AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY gated_backfill gated_backfill
COPY common common
COPY producer producer
COPY worker worker
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# The dependencies at the versions of the lock, without its development tools.
FROM base AS installed
WORKDIR /src
COPY requirements.lock ./
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/backfill \
    && /opt/backfill/bin/pip install --no-cache-dir --compile --constraint requirements.lock /wheels/*.whl

FROM base AS emulator-installed
WORKDIR /src
COPY tests/emulator/requirements.lock ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --compile --requirement requirements.lock

FROM base AS emulator
LABEL org.opencontainers.image.title="gated-backfill-emulator" \
      org.opencontainers.image.description="A BigQuery emulator, patched for gated-backfill: for trials, not for data"
COPY --from=emulator-installed /opt/venv /opt/venv
COPY tests/emulator/launch.py /opt/emulator/launch.py
ENV PATH=/opt/venv/bin:$PATH
RUN install --directory --owner=backfill --group=backfill /var/lib/emulator
WORKDIR /var/lib/emulator
USER 10001:10001
EXPOSE 9050
CMD ["python", "/opt/emulator/launch.py", "start", "--rest-host", "0.0.0.0"]

FROM base AS app
LABEL org.opencontainers.image.title="gated-backfill" \
      org.opencontainers.image.description="Distributed backfills that publish a date only after its coverage has been recounted"
COPY --from=installed /opt/backfill /opt/backfill
ENV PATH=/opt/backfill/bin:$PATH \
    BACKFILL_HOME=/var/lib/backfill
# A new volume gets the owner of the folder that it is mounted on.
RUN install --directory --owner=backfill --group=backfill --mode=0700 /var/lib/backfill \
    && install --directory --owner=backfill --group=backfill /opt/jobs
WORKDIR /var/lib/backfill
USER 10001:10001
CMD ["backfill", "--help"]
