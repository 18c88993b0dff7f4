"""Texts of others: what they may hold, and what of it must never reach an output."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

FORGED = "2023-02-20  checkpointed"  #: what a forged line would say
BREAKS = ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\n\n")
ACTING = (
    *("\x1b[31m", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\x08" * 20, "\x07", "\t", "\x7f", "\x00", "\x1b"),
    *("\u202e", "\u2066", "\u200f", "\u2067", "\u061c", "\ufeff", "\u200b", "\u00ad", "\U000e0041", "\ue000"),
    *("[red]", "[/red]", "[/nothing]", "[bold", ":warning:", "<b>", "<script>alert(1)</script>", "{{ 7 * 7 }}", "%s"),
    *("=1+1", "+1", "-1", "@SUM(A1)", '"', "'", ",", ";", "|", "\\", "\\n", "$(reboot)", "`x`"),
    *("é", "中文", "日本　太郎", "👩🏽‍🚀", "❤️‍🔥", "ñandú", "Łódź", "ﷺ", "x" * 5000),
)
BREAKING = st.builds("{}{}{}".format, st.sampled_from(["", "ada"]), st.sampled_from(BREAKS), st.just(FORGED))
#: Names of entities, reasons and users. Neither Parquet nor a command line can hold a surrogate.
texts = st.lists(
    st.one_of(BREAKING, st.sampled_from(ACTING), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
    min_size=1,
    max_size=4,
).map("".join)
LEGIBLE_FORMATS = {"\u200c", "\u200d"}  #: within emoji and words


def acting_characters(text: str) -> set[str]:
    """The characters of an output that act on a terminal or hide, apart from the ends of its lines."""
    invisible = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return {char for char in text if unicodedata.category(char) in invisible} - {"\n"} - LEGIBLE_FORMATS


def check_output(text: str, *, longest: int = 10_000) -> None:
    """Check that nothing of others acts on a terminal, forges a line, or fills the screen."""
    lines = text.split("\n")
    assert acting_characters(text) == set()
    assert [line for line in lines if line.startswith(FORGED)] == []
    assert max(map(len, lines)) <= longest
