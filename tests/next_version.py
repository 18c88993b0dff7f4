"""This tool in its next version, which knows one migration more: `python -m tests.next_version FOLDER PROGRAM ...`.

FOLDER has the migrations, see `write_next_migrations`. PROGRAM is `celery` or `backfill`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from gated_backfill.common.ledger import inspection, migration, revisions, users

THIS_REVISION = revisions.HEAD_REVISION
NEXT_REVISION = f"{int(THIS_REVISION) + 1:04}"
SCRIPT = f'''"""A column that older versions neither read nor write."""

import sqlalchemy as sa
from alembic import op

revision = {NEXT_REVISION!r}
down_revision = {THIS_REVISION!r}
BREAKS_OLDER_CODE = False


def upgrade() -> None:
    op.add_column("run_dates", sa.Column("mood", sa.String(10), nullable=True))
'''


def write_next_migrations(folder: Path) -> Path:
    """Write the migrations of the next version to the folder, and return it."""
    shutil.copytree(migration.MIGRATIONS, folder)
    (folder / "versions" / f"{NEXT_REVISION}_next.py").write_text(SCRIPT)
    return folder


def become_next_version(migrations: Path) -> None:
    migration.MIGRATIONS = migrations
    for module in (inspection, migration, revisions, users):
        module.HEAD_REVISION = NEXT_REVISION


def main() -> None:
    folder, program, *arguments = sys.argv[1:]
    become_next_version(Path(folder))
    sys.argv = [program, *arguments]
    if program == "celery":
        from celery.__main__ import main as run_program
    else:
        from gated_backfill.producer.cli.main import main as run_program
    run_program()


if __name__ == "__main__":
    main()
