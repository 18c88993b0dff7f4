"""The demo as a newcomer runs it."""

from __future__ import annotations

from datetime import date

from tests.lab import Lab

TARGET = "nba_precompute.player_composite_factors"


def test_the_demo_rebuilds_the_incident_from_the_fallback_and_then_replays_it(lab: Lab) -> None:
    first = lab.command("demo")

    assert first.returncode == 0, first.stdout + first.stderr
    assert (
        "2023-02-23  187       1 (0.5 %)    187 (100.0 %)  derived     187/187 (100.0 %), checkpointed" in first.stdout
    )
    assert (
        "2023-02-24  175       68 (38.8 %)  175 (100.0 %)  derived     175/175 (100.0 %), checkpointed" in first.stdout
    )
    assert "2023-02-23  BLOCKED  1/187 = 0.5 %" in first.stdout
    assert "2023-02-24  BLOCKED  68/175 = 38.8 %" in first.stdout
    assert len(lab.published(TARGET, date(2023, 2, 23))) == 187
    assert {row["context_source"] for row in lab.published(TARGET, date(2023, 2, 23))} == {"derived"}
    runs = lab.site.ledger.latest_runs()
    assert [run.state.value for run in runs] == ["failed", "succeeded"]

    before = lab.table_bytes(TARGET)
    second = lab.command("demo")

    assert second.returncode == 0, second.stdout + second.stderr
    assert "dates are checkpointed already" in second.stdout
    assert lab.table_bytes(TARGET) == before
    assert lab.site.ledger.latest_runs() == runs


def test_the_demo_leaves_tables_alone_that_it_did_not_make(lab: Lab) -> None:
    lab.summary(date(2023, 2, 23), ["somebody"])

    refused = lab.command("demo")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "already holds nba_analytics.player_game_summary, which the demo did not make" in refused.stderr
