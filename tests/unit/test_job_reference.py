"""The reference of the job contract in docs/jobs.md lists the fields, types and defaults of the code."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from typing import Any, get_args

import pytest

import gated_backfill
from gated_backfill.common.model.tables import ColumnType
from tests.documents import ROOT

JOBS_GUIDE = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
PUBLIC = [getattr(gated_backfill, name) for name in gated_backfill.__all__]
DATACLASSES = [public for public in PUBLIC if dataclasses.is_dataclass(public)]


def section(name: str) -> str:
    """The text below the heading of a public class."""
    match = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", JOBS_GUIDE, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/jobs.md has no heading for {name}"
    return match[1]


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{getattr(field.default_factory, '__name__', '')}()`"
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, Enum):
        return f"`{field.default}`"
    return f"`{getattr(field.default, '__name__', None) or repr(field.default)}`"


@pytest.mark.parametrize("public", DATACLASSES, ids=lambda public: public.__name__)
def test_the_reference_has_each_field_with_its_type_and_default(public: Any) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+?) \| .+ \|$", section(public.__name__), re.MULTILINE)

    assert rows == [
        (field.name, str(field.type).replace(" | ", " or "), default_of(field)) for field in dataclasses.fields(public)
    ]


def test_the_reference_names_the_column_types_the_fallbacks_and_the_errors() -> None:
    column_types = re.findall(r"^\| `([A-Z0-9]+)` \|", section("Column types"), re.MULTILINE)
    fallbacks = re.findall(r"^\| `Fallback\.(\w+)` \|", section("Fallback"), re.MULTILINE)
    errors = re.findall(r"^\| `(\w+)` \|", section("Errors"), re.MULTILINE)

    assert column_types == list(get_args(ColumnType))
    assert fallbacks == [member.name for member in gated_backfill.Fallback]
    assert set(errors) == {
        public.__name__ for public in PUBLIC if isinstance(public, type) and issubclass(public, Exception)
    }
