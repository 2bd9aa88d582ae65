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
from tests.pipeline import write_params

ROOT = Path(__file__).parents[2]


def changed(inputs: Inputs) -> str:
    """The names in the line that `check` raises."""
    with pytest.raises(UserError) as error:
        inputs.check()
    return re.match("changed while this stage ran: (.*). Nothing was written", str(error.value))[1]


def test_files_and_parameters_that_changed_are_named_and_what_is_restored_passes_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (data := Path("a.csv")).write_text("one")
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
    with pytest.raises(UserError, match=r"^x: no such file; make it with `dvc repro`$"):
        inputs.read(Path("x"))


def test_what_was_used_is_what_was_hashed_whatever_lay_there_before_and_after(workspace, monkeypatch):
    """A, B, C: other files at the moment of reading, of which the data set is parsed, and others again later."""
    contents = {path: path.read_bytes() for path in Path("data").iterdir()}
    reads = {path: iter([content, b"C"]) for path, content in contents.items()}
    for path in contents:
        path.write_bytes(b"A")
    monkeypatch.setattr(module, "read_bytes", lambda path: next(reads[path]))
    inputs = Inputs(lambda: None)
    assert len(read_dataset(inputs.read).train.images) == 40
    assert inputs.files == {path: sha256(content) for path, content in contents.items()}
    assert changed(inputs) == "data/dataset.json; data/test.npz; data/train.npz"


def test_code_that_is_loaded_and_was_edited_after_python_began_is_named_and_no_other(tmp_path):
    """In a copy of the project, edited between the start of Python and the import of the module."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    write_params(tmp_path)
    code = """
import stages, sys
slow = {"torch", "numpy", "pandas", "pydantic"} & set(sys.modules)  # the digests are taken before these are imported
for name in ("common/params.py", "training/loop.py", "models/resnet.py"):
    open(f"stages/{name}", "a").write("# edited")
from stages.common.inputs import Inputs
from stages.common.params import load_params
from stages.training.recipe import recipe_of
inputs = Inputs(lambda: recipe_of(load_params(), "cnn"))  # which imports resnet.py too
print(slow, sorted(path.stem for path in inputs.code()))
inputs.check()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "set() ['__init__', 'cnn', 'errors', 'files', 'inputs', 'params', 'recipe']\n"
    assert "UserError: changed while this stage ran: stages/common/params.py. Nothing was written" in done.stderr
