"""Garbage is looked for again once what was to be imported is there."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gated_backfill.common.process.imports import freeze_imports
from tests.builders import run_python


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    looked = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if looked else gc.disable)()


@pytest.mark.parametrize("looked", [True, False])
def test_garbage_is_looked_for_afterwards_as_it_was_before(looked: bool) -> None:
    (gc.enable if looked else gc.disable)()
    with freeze_imports():
        assert not gc.isenabled()
        with freeze_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() is looked


def test_what_was_imported_is_not_looked_at_again() -> None:
    with freeze_imports():
        imported = [object()]
    assert gc.get_freeze_count() > 0
    assert not any(one is imported for one in gc.get_objects())


def test_an_import_that_fails_leaves_nothing_switched_off() -> None:
    gc.enable()
    with pytest.raises(ImportError), freeze_imports():
        raise ImportError("there is no such thing")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_process_ends_without_a_word_of_what_it_imported() -> None:
    ran = run_python(
        """
        from gated_backfill.common.process.imports import freeze_imports

        with freeze_imports():
            import duckdb
        duckdb.connect().execute("SELECT 1").fetchall()
        """
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
