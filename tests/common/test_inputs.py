import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_what_stays_passes_and_what_is_restored_passes_again(data):
    inputs = Inputs(lambda: {"seed": 1})
    assert inputs.settings == {"seed": 1}
    assert inputs.read(data) == b"one"
    assert inputs.files == {
        data: "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    }  # sha256sum of "one"
    inputs.check()
    data.write_text("two")
    assert changed(inputs) == "a.csv"
    data.unlink()
    assert changed(inputs) == "a.csv"
    data.write_text("one")
    inputs.check()


def test_what_was_used_is_what_was_hashed_whatever_lay_there_before_and_after(data):
    """A, B, A: another file under the name while it is read, and the first one back before the check."""
    inputs = Inputs(lambda: None)
    data.write_text("two")
    used = inputs.read(data)
    data.write_text("one")
    assert used == b"two"
    assert changed(inputs) == "a.csv"


def test_a_data_set_is_parsed_from_the_bytes_that_were_hashed(workspace, monkeypatch):
    """Each file is replaced once it was read: what is used is what was there, and its digest."""
    inputs, contents = Inputs(lambda: None), {}

    def read(path: Path) -> bytes:
        contents[path] = path.read_bytes()
        content = inputs.read(path)
        path.write_bytes(b"another")
        return content

    images = read_dataset(read).train.images
    assert len(images) == 40
    assert inputs.files == {path: sha256(content) for path, content in contents.items()}
    assert [path.name for path in contents] == ["dataset.json", "train.npz", "test.npz"]
    for path, content in contents.items():
        path.write_bytes(content)
    inputs.check()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"^x: no such file; make it with `dvc repro`$"),
        (lambda path: path.mkdir(), "^x: cannot be read: Is a directory$"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(data, make, message):
    make(Path("x"))
    with pytest.raises(UserError, match=message):
        Inputs(lambda: None).read(Path("x"))


def test_parameters_that_changed_are_named_after_the_files(data):
    values = [1]
    inputs = Inputs(lambda: values[0])
    inputs.read(data)
    values[0] = 2
    assert changed(inputs) == "the parameters"
    data.write_text("two")
    assert changed(inputs) == "a.csv; the parameters"


def test_parameters_that_can_no_longer_be_read_end_in_their_own_line(data):
    def load() -> None:
        if not data.exists():
            raise UserError("params.yaml: no such file")

    inputs = Inputs(load)
    data.unlink()
    with pytest.raises(UserError, match=r"^params\.yaml: no such file$"):
        inputs.check()


def test_code_that_is_loaded_and_was_edited_after_python_began_is_named_and_no_other(tmp_path):
    """In a copy of the project, edited between the start of Python and the import of the module."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import stages
from pathlib import Path
def edit(name):
    with open(Path("stages", name), "a") as file:
        file.write("# edited")
edit("common/params.py")
edit("training/loop.py")
from stages.common.inputs import Inputs
from stages.common import params
inputs = Inputs(lambda: None)
print(sorted(str(path.relative_to(Path.cwd())) for path in inputs.code()))
edit("models/cnn.py")
try:
    inputs.check()
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded, said = done.stdout.splitlines()
    assert {"stages/__init__.py", "stages/common/params.py", "stages/common/inputs.py"} <= set(eval(loaded))
    assert "stages/training/loop.py" not in loaded
    assert said.startswith("changed while this stage ran: stages/common/params.py. Nothing was written")


def test_the_digest_of_each_module_is_taken_before_anything_slow_is_imported():
    code = "import sys, stages; print(sorted({'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)), len(stages.CODE))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"[] {len(list((ROOT / 'stages').rglob('*.py')))}\n"
