import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

import stages.common.inputs as module
from stages.common.errors import UserError
from stages.common.inputs import Inputs


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder `data` with a file in a folder, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "data/inner/a.csv").write_text("one")
    return Path("data")


def changed(inputs: Inputs) -> str:
    """The names in the line that `check` raises."""
    with pytest.raises(UserError) as error:
        inputs.check()
    return re.match("changed while this stage ran: (.*). Nothing was written", str(error.value))[1]


def test_what_stays_passes_and_what_is_restored_passes_again(data):
    inputs = Inputs(lambda: {"seed": 1}, data)
    inputs.check()
    (data / "inner/a.csv").write_text("two")
    assert changed(inputs) == "data/inner/a.csv"
    (data / "inner/a.csv").write_text("one")
    inputs.check()


def test_a_file_with_the_same_size_and_time_is_compared_by_its_inode(data):
    path, inputs = data / "inner/a.csv", Inputs(lambda: None, data)
    status = path.stat()
    (data / "new").write_text("two")
    os.replace(data / "new", path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed(inputs) == "data/inner/a.csv"


def test_a_file_that_is_only_touched_passes(data):
    inputs = Inputs(lambda: None, data)
    (data / "inner/a.csv").touch()
    inputs.check()


def test_files_that_come_and_go_are_named_together_with_the_parameters(data):
    values = [1]
    inputs = Inputs(lambda: values[0], data, Path("not/there"))
    values[0] = 2
    (data / "b.csv").touch()
    (data / "inner/a.csv").unlink()
    assert changed(inputs) == "data/b.csv; data/inner/a.csv; the parameters"


def test_what_dvc_ignores_does_not_count(data):
    inputs = Inputs(lambda: None, data)
    for name in (".DS_Store", ".a.csv.12ab.tmp", "README.md"):
        (data / name).touch()
    inputs.check()


def test_parameters_that_can_no_longer_be_read_end_in_their_own_line(data):
    path = Path("params.yaml")
    path.touch()

    def read() -> None:
        if not path.exists():
            raise UserError("params.yaml: no such file")

    inputs = Inputs(read, data)
    path.unlink()
    with pytest.raises(UserError, match=r"^params\.yaml: no such file$"):
        inputs.check()


def test_the_code_is_every_module_of_the_stages_that_is_imported_and_no_other(data, tmp_path, monkeypatch):
    """A module beside the real ones, in a copy of the folder that the real class is told is its own."""
    folder = tmp_path / "copy" / "stages"
    (folder / "common").mkdir(parents=True)
    for name in ("common/inputs.py", "used.py", "unused.py"):
        (folder / name).write_text("value = 1\n")
    monkeypatch.setattr(module, "__file__", str(folder / "common/inputs.py"))
    spec = importlib.util.spec_from_file_location("stages.used", folder / "used.py")
    monkeypatch.setitem(sys.modules, "stages.used", importlib.util.module_from_spec(spec))
    inputs = Inputs(lambda: None, data)
    assert [Path(path).name for path in inputs.code] == ["inputs.py", "used.py"]
    assert list(inputs.data) == ["data/inner/a.csv"]
    (folder / "unused.py").write_text("value = 2\n")
    inputs.check()
    (folder / "used.py").write_text("value = 2\n")
    assert changed(inputs) == "copy/stages/used.py"


def test_digests_are_sha256_of_the_content(data):
    assert Inputs(lambda: None, data).data == {
        "data/inner/a.csv": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum of "one"
    }
