"""What `make audit` makes of the answers it gets: silence never reads as fine."""

from __future__ import annotations

import json

from tests.audit import Answer, answer_of, listed, pins, verdict

FINE = Answer(source="pypi", audited=2)
SILENT = Answer(source="osv", silent="ConnectionError")


def report(*dependencies: dict[str, object]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_a_known_vulnerability_fails_whoever_knows_it() -> None:
    found = answer_of(
        "pypi",
        report({"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"], "aliases": []}]}),
        "",
    )
    code, said = verdict([SILENT, found], 1)
    assert code == 1
    assert "a 1: PYSEC-1, mended in 2" in said


def test_all_is_well_only_where_a_source_knew_every_package() -> None:
    assert verdict([SILENT, FINE], 2)[1][0].startswith("audited: nothing is known against the 2 packages")
    for answers in ([], [SILENT], [Answer(source="pypi", audited=1)], [Answer(source="pypi", audited=2, silent="x")]):
        code, said = verdict(answers, 2)
        assert code == 0
        assert any(line.startswith("NOT AUDITED") for line in said)


def test_a_report_that_says_nothing_is_no_answer() -> None:
    assert answer_of("pypi", "", "ERROR: x\nrequests.exceptions.ConnectionError: no way out").silent == (
        "requests.exceptions.ConnectionError: no way out"
    )
    assert answer_of("pypi", report(), "").silent
    assert answer_of("pypi", report({"name": "a", "skip_reason": "not found on PyPI"}), "").silent


def test_the_offline_list_is_held_against_the_pins() -> None:
    pinned = pins("# a comment\nDjango_x==1.0 ; python_version > '3'\n    # via y\nother==2.0\n")
    assert pinned == {"django-x": "1.0", "other": "2.0"}
    assert listed(pinned, {"django.x": ["<1.1", ">2"], "other": ["<1"]}) == ["django-x 1.0: <1.1 in the offline list"]
