"""Format tables as text."""

from mlops_img.core.text import markdown_table, text_table

ROWS = [("name", "n", "note"), ("a", "10", ""), ("long name", "7", "x")]


def test_columns_of_a_text_table_are_aligned() -> None:
    assert text_table(ROWS, left=(0, 2)).splitlines() == [
        "name        n  note",
        "a          10",
        "long name   7  x",
    ]


def test_markdown_table_has_a_rule_below_its_header() -> None:
    assert markdown_table(ROWS).splitlines() == [
        "| name      | n   | note |",
        "| --------- | --- | ---- |",
        "| a         | 10  |      |",
        "| long name | 7   | x    |",
    ]
