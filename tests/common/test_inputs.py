import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common import inputs as module
from stages.common.dataset import read_dataset
from stages.common.errors import UserError
from stages.common.files import sha256
from stages.common.inputs import Inputs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A file in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("one")
    return Path("a.csv")


def changed(inputs: Inputs) -> str:
    """The names in the line that `check` raises."""
    with pytest.raises(UserError) as error:
        inputs.check()
    return re.match("changed while this stage ran: (.*). Nothing was written", str(error.value))[1]


def test_files_and_parameters_that_changed_are_named_and_what_is_restored_passes_again(data):
    values = [1]
    inputs = Inputs(lambda: values[0])
    assert (inputs.settings, inputs.read(data)) == (1, b"one")
    assert inputs.files == {data: "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}  # by sha256sum
    inputs.check()
    data.write_text("two")
    values[0] = 2
    assert changed(inputs) == "a.csv; the parameters"
    data.unlink()
    values[0] = 1
    assert changed(inputs) == "a.csv"
    data.write_text("one")
    inputs.check()


def test_what_was_used_is_what_was_hashed_whatever_lay_there_before_and_after(data, monkeypatch):
    """A, B, A: a stand-in for another file under the name at the moment of reading, and a third one later."""
    contents = iter([b"two", b"three"])
    monkeypatch.setattr(module, "read_bytes", lambda path: next(contents))
    inputs = Inputs(lambda: None)
    assert inputs.read(data) == b"two"
    assert inputs.files == {data: sha256(b"two")}
    assert changed(inputs) == "a.csv"


def test_a_data_set_is_parsed_from_the_bytes_that_were_hashed(workspace):
    """Each file is replaced once it was read."""
    inputs, contents = Inputs(lambda: None), {}

    def read(path: Path) -> bytes:
        contents[path] = path.read_bytes()
        content = inputs.read(path)
        path.write_bytes(b"another")
        return content

    assert len(read_dataset(read).train.images) == 40
    assert inputs.files == {path: sha256(content) for path, content in contents.items()}
    assert [path.name for path in contents] == ["dataset.json", "train.npz", "test.npz"]


def test_a_file_that_cannot_be_read_is_named(data):
    for name in ("x", "."):
        with pytest.raises(UserError, match=f"^{re.escape(name)}: no such file; make it with `dvc repro`$"):
            Inputs(lambda: None).read(Path(name))


def test_code_that_is_loaded_and_was_edited_after_python_began_is_named_and_no_other(tmp_path):
    """In a copy of the project, edited between the start of Python and the import of the module."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import stages, sys
slow = {"torch", "numpy", "pandas", "pydantic"} & set(sys.modules)  # the digests are taken before these are imported
for name in ("common/params.py", "training/loop.py"):
    open(f"stages/{name}", "a").write("# edited")
from stages.common.inputs import Inputs
from stages.common import params
inputs = Inputs(lambda: None)
print(slow, sorted(path.name for path in inputs.code()))
try:
    inputs.check()
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded, said = done.stdout.splitlines()
    assert loaded == "set() ['__init__.py', 'errors.py', 'files.py', 'inputs.py', 'params.py']"
    assert said.startswith("changed while this stage ran: stages/common/params.py. Nothing was written")
