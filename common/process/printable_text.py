"""Make text from data, users and other programs printable, for every output that is not JSON.

A name, a reason or an error may hold anything: escape sequences that act on a terminal, line breaks that forge a line,
characters that reverse the text after them, or thousands of characters.
"""

from __future__ import annotations

import re
import unicodedata

NAME_LENGTH = 120  #: characters of a name of an entity or a user
TEXT_LENGTH = 1000  #: characters of a reason or an error
CONTINUATION = "    "  #: begins each further line of a text, so that it does not look like a line of ours
JOINERS = "\u200c\u200d"  #: within emoji, and within words of some scripts
PICTOGRAPHS = range(0x1F000, 0x1FC00)  #: with emoji that this version of Python does not know yet
_WHITE_SPACE = re.compile("\r\n|[\t\n\v\f\r\x85\u2028\u2029]")


def printable(text: str) -> str:
    """Return the text on one line, a space for each line break and tab, and other control characters escaped.

    Letters, marks, symbols and emoji of all scripts stay as they are; so does a text that is printable already.
    """
    return text if text.isprintable() else _escape(_WHITE_SPACE.sub(" ", text))


def shorten(text: str, length: int = TEXT_LENGTH) -> str:
    """Return the printable text, with its middle left out if it has more than `length` characters."""
    return _cut(printable(text), length)


def printable_name(name: str) -> str:
    """Return the name printable and shortened. Line breaks are escaped, so that it is not read as another name."""
    return _cut(name if name.isprintable() else _escape(name), NAME_LENGTH)


def printable_lines(text: str) -> str:
    """Return the lines of the text, each printable, and all but the first one indented."""
    return f"\n{CONTINUATION}".join(map(printable, text.split("\n")))


def storable(text: str) -> str:
    """Return the text with NUL and surrogates escaped, which not every database stores."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode(errors="backslashreplace").decode()
    return text.replace("\0", "\\x00")


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 1]}…{text[-end:]}"


def _escape(text: str) -> str:
    return "".join(
        char if _is_legible(text, at) else char.encode("unicode_escape").decode() for at, char in enumerate(text)
    )


def _is_legible(text: str, at: int) -> bool:
    char = text[at]
    if char in JOINERS:  # between ASCII letters it would only hide
        return not (text[:at][-1:].isascii() or text[at + 1 : at + 2].isascii())
    return char.isprintable() or unicodedata.category(char) == "Zs" or ord(char) in PICTOGRAPHS
