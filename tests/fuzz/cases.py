"""How many cases each fuzz test tries, and what is nasty.

`make fuzz CASES=n` shares n cases among the tests, others each time. Without it, as part of `make test`, they are few
and always the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

FEW = 300
ASKED = os.environ.get("FUZZ_CASES")
CASES = int(ASKED or FEW)
#: Shrinking a failing command line costs more than reading it.
PHASES = (Phase.explicit, Phase.generate) if ASKED is None else (Phase.explicit, Phase.generate, Phase.shrink)


def share(part: float) -> Callable[[Any], Any]:
    """The test tries that part of all cases."""
    return settings(
        max_examples=max(int(CASES * part), 5),
        derandomize=ASKED is None,
        database=None,
        deadline=None,
        phases=PHASES,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


NASTY = (
    *("", " ", "-", "--", "-1"),
    *("0", "00", "1e309", "NaN", "inf", str(2**31), str(2**63), str(-(2**63) - 1)),
    *("9" * 400, "9" * 5000),
    *("1_000", "٣", "0x10"),
    *("2023-02-23", "2023-02-30", "2023-02-23..2023-02-25", "2023-02-25..2023-02-23"),
    *("0001-01-01", "9999-12-31", "0001-01-01..9999-12-31", "2023-02-23T00:00:00"),
    *("20230223", "2023-W08-4", "+002023-02-23", "2023-02-23\n"),
    *("probe", "probe.expected", "probe.probe", "probe.first", "player_composite_factors"),
    *("os:system", "os", "builtins.eval"),
    *("../../etc/passwd", "..", "a.b.c"),
    *("a.b; DROP TABLE runs", "' OR '1'='1", "`x`", "$(touch canary)", "{0.__class__}"),
    *("%s%n", "[red]x[/red]", "[/nothing]"),
    *("\\", "\x1b[31m", "\u202e", "\ud800", "\udcff", "ａ", "é" * 300, "💥"),
    *("true", "null", "none", "replace", "all", "failed", ",", ",,2023-02-23,"),
)

#: What a command line or an environment can hold: no NUL.
words = st.one_of(
    st.sampled_from(NASTY),
    st.sampled_from(NASTY),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=()), max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.dates().map(str),
)
