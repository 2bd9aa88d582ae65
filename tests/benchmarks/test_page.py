from benchmarks.page import Page


def test_a_table_begins_with_the_keys_of_its_first_row_and_a_row_of_other_columns_begins_a_new_one(tmp_path):
    page = Page(tmp_path / "page.md")
    for row in ({"a": 1, "b": "x|y"}, {"a": 1234.5, "b": 0.012345}, {"c": 2}):
        page.row(row)
    table = "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n| 1,234 | 0.01235 |\n"
    assert page.path.read_text() == f"\n{table}\n| c |\n| --- |\n| 2 |\n"
