from benchmarks.page import Page, table


def test_table_begins_with_the_keys_of_its_first_row():
    assert table([{"a": 1, "b": "x|y"}, {"a": 1234.5, "b": 0.012345}]) == (
        "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n| 1,234 | 0.01235 |"
    )


def test_row_is_in_the_file_when_it_is_written(tmp_path):
    page = Page(tmp_path / "page.md")
    page.write("# Title")
    page.row({"a": 1})
    assert page.path.read_text() == "\n# Title\n\n| a |\n| --- |\n| 1 |\n"
    page.row({"a": 2})
    assert page.path.read_text().endswith("| 1 |\n| 2 |\n")


def test_row_of_other_columns_begins_a_new_table(tmp_path):
    page = Page(tmp_path / "page.md")
    page.row({"a": 1})
    page.row({"b": 2})
    assert page.path.read_text() == "\n| a |\n| --- |\n| 1 |\n\n| b |\n| --- |\n| 2 |\n"


def test_page_is_added_to(tmp_path):
    Page(tmp_path / "page.md").write("first")
    Page(tmp_path / "page.md").write("second")
    assert (tmp_path / "page.md").read_text() == "\nfirst\n\nsecond\n"
