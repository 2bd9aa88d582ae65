import pandas as pd
import pytest

from stages.files import replacing, write_csv, write_json, write_text


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "result.txt"
    write_text(path, "first, and longer\n")
    write_text(path, "zweite ×\n")
    assert path.read_bytes() == "zweite ×\n".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_the_old_file_whole(tmp_path, error):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write():
        with replacing(path) as file:
            file.write("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_until_the_block_ends_readers_see_the_old_file(tmp_path):
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")
    with replacing(path, "wb") as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_json_is_readable_utf8_and_refuses_what_json_has_no_word_for(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"Straße": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "Straße": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert "Straße" in path.read_text(encoding="utf-8")


def test_csv_has_no_index_unix_lines_and_eight_digits(tmp_path):
    path = tmp_path / "result.csv"
    write_csv(path, pd.DataFrame({"epoch": [1, 2], "loss": [1 / 3, 2.5e-5]}))
    assert path.read_bytes() == b"epoch,loss\n1,0.33333333\n2,2.5e-05\n"
