"""Format tables and lists as text."""

from mlops_img.core.text import markdown_table, shortened_list, text_table, valid_utf8

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


def test_shortened_list_says_how_many_items_it_leaves_out() -> None:
    names = [f"n{index}" for index in range(1234)]
    assert shortened_list(names[:3], 3) == "n0, n1, n2"
    assert shortened_list(names[:4], 3) == "n0, n1, n2 and 1 more"
    assert shortened_list(names, 2, separator=" = ") == "n0 = n1 and 1,232 more"
    assert shortened_list([], 2) == ""


def test_name_of_a_file_that_is_not_utf8_is_escaped() -> None:
    assert valid_utf8(b"\xff\xc3\xbc.jpg".decode(errors="surrogateescape")) == "\\udcffü.jpg"
