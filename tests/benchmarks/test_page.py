from benchmarks.page import Page


def test_table_begins_with_the_keys_of_its_first_row_and_is_on_the_disk_at_once(tmp_path, capsys):
    page = Page(tmp_path / "page.md")
    page.write("# Title")
    page.row({"a": 1, "b": "x|y"})
    assert page.path.read_text() == "\n# Title\n\n| a | b |\n| --- | --- |\n| 1 | x\\|y |\n"
    page.row({"a": 1234.5, "b": 0.012345})
    assert page.path.read_text().endswith("\\|y |\n| 1,234 | 0.01235 |\n")
    assert capsys.readouterr().out == page.path.read_text()


def test_row_of_other_columns_begins_a_new_table_and_a_file_is_added_to(tmp_path):
    Page(tmp_path / "page.md").write("first")
    page = Page(tmp_path / "page.md")
    page.row({"a": 1})
    page.row({"b": 2})
    assert page.path.read_text() == "\nfirst\n\n| a |\n| --- |\n| 1 |\n\n| b |\n| --- |\n| 2 |\n"
