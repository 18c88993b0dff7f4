"""What a worker does before it forks its children."""

from __future__ import annotations

from pathlib import Path

from tests.builders import run_python

IMPORT_APP = """
    import gc, os, sys

    os.environ |= {"BACKFILL_BROKER": "redis://localhost:1/0", "BACKFILL_HOME": sys.argv[1], "TMPDIR": sys.argv[1]}
    sys.argv[1:] = []
    from celery.signals import celeryd_after_setup
    from gated_backfill.worker.app import app

    WORKER = type("Worker", (), {"app": app, "hostname": "worker@here"})
"""
START = """
    app.amqp.queues.select(["backfill", "gate"])
    [(_, error)] = celeryd_after_setup.send(sender="worker@here", instance=WORKER)
    assert error is None, error
    imported = sys.modules["gated_backfill.worker.gate.gate"].__dict__
    assert gc.get_freeze_count() > 100_000
    assert not any(each is imported for each in gc.get_objects())
    assert gc.isenabled()
"""
FAILING_IMPORT = """
    def fail(_: object) -> None:
        raise ImportError("there is no such module")

    sys.modules["gated_backfill.worker.app"].preload_warehouse = fail
    app.amqp.queues.select(["gate"])
    [(_, error)] = celeryd_after_setup.send(sender="worker@here", instance=WORKER)
    assert isinstance(error, ImportError), error
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
"""
SHARED_MEMORY = """
    import billiard

    before = os.listdir(os.environ["TMPDIR"])
    counter = billiard.Value("i")
    assert os.listdir(os.environ["TMPDIR"]) == before
"""


def test_what_was_imported_is_not_looked_at_again_and_the_worker_ends_without_a_word_of_it(tmp_path: Path) -> None:
    ran = run_python(IMPORT_APP + START, tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_an_import_that_fails_leaves_garbage_collection_switched_on(tmp_path: Path) -> None:
    ran = run_python(IMPORT_APP + FAILING_IMPORT, tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_a_worker_that_is_killed_leaves_no_temporary_folder(tmp_path: Path) -> None:
    ran = run_python(IMPORT_APP + START + SHARED_MEMORY, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_importing_what_builds_dates_allocates_nothing_with_arrow() -> None:
    """Arrow's first allocation reserves 1 GiB, which would count against the memory limit of every forked process."""
    ran = run_python("""
        import pyarrow
        import gated_backfill.common.warehouse.local.warehouse, gated_backfill.worker.dates.process

        assert pyarrow.default_memory_pool().max_memory() == 0
    """)
    assert (ran.returncode, ran.stderr) == (0, "")
