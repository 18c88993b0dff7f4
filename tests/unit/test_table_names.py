"""Names of tables: what they may hold, and how they are ordered."""

from __future__ import annotations

import pytest

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import DatedTable, TableName, parse_dated_tables

PLAIN = TableName("marts", "revenue")
ELSEWHERE = TableName("marts", "revenue", "shop-prod-2")


@pytest.mark.parametrize("name", [PLAIN, ELSEWHERE, TableName("d", "t", "p" * 30)])
def test_a_name_is_written_as_it_is_read(name: TableName) -> None:
    assert TableName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("revenue", id="table-only"),
        pytest.param("", id="empty"),
        pytest.param("a.b.c.d", id="four-parts"),
        pytest.param(".marts.revenue", id="empty-project"),
        pytest.param("shop.marts.revenue", id="project-of-4-letters"),
        pytest.param("p" * 31 + ".marts.revenue", id="project-of-31-letters"),
        pytest.param("Shop-Prod.marts.revenue", id="upper-case-project"),
        pytest.param("shop-prod-.marts.revenue", id="hyphen-at-the-end"),
        pytest.param("2shop-prod.marts.revenue", id="digit-at-the-start"),
        pytest.param("shop_prod.marts.revenue", id="underscore-in-project"),
        pytest.param("example.com:shop-prod.marts.revenue", id="domain"),
        pytest.param("`shop-prod`.marts.revenue", id="quotes"),
        pytest.param("shop-prod.my-marts.revenue", id="hyphen-in-dataset"),
        pytest.param("shop-prod.marts.revenue; DROP", id="sql"),
        pytest.param("shop-prod.marts.revenue\n", id="line-end"),
        pytest.param("shop-prod." + "d" * 128 + "." + "t" * 128, id="longer-than-the-ledger-stores"),
    ],
)
def test_another_text_is_no_name(text: str) -> None:
    with pytest.raises(UserError):
        TableName.parse(text)


def test_names_with_and_without_a_project_have_an_order() -> None:
    assert sorted([ELSEWHERE, PLAIN]) == [PLAIN, ELSEWHERE]


def test_a_list_of_tables_may_name_projects() -> None:
    found = parse_dated_tables("marts.revenue, shop-prod-2.marts.revenue:sold_on")
    assert found == (DatedTable(name=PLAIN), DatedTable(name=ELSEWHERE, date_column="sold_on"))
    with pytest.raises(UserError, match=r"shop-prod-2\.marts\.revenue is named twice"):
        parse_dated_tables("shop-prod-2.marts.revenue,shop-prod-2.marts.revenue")
