"""dvc and its trainings, disturbed: results belong to their parameters, and no work is lost."""

import shutil

from tests.pipeline import ROOT, Clone, write_params
from tests.warm import until

EPOCHS, BATCHES = 10, 4
MODEL, HISTORY = "models/mine.safetensors", "plots/history/mine.csv"
LAUNCHER = """#!/bin/sh
python "$@"
sed -i "s/seed: 42/seed: 43/" params.yaml
"""


def results(clone: Clone) -> list[bytes]:
    return [(clone.folder / name).read_bytes() for name in (MODEL, HISTORY)]


def test_a_training_that_outlives_its_dvc_is_kept_and_one_of_other_parameters_is_refused_until_forced(tmp_path):
    clone = Clone.of_work_tree(tmp_path / "clone")
    shutil.copy(ROOT / "tests/mine.py", clone.folder / "stages/models")
    runs = {"mine": {"model": "mine", "weight_decay": "train.weight_decay"}}
    changes = {"runs": runs, "compare": {}, "mine": {"epochs": EPOCHS}}
    write_params(clone.folder, **changes)
    hold, repro = clone.folder / "hold", ("dvc", "repro", "train@mine")
    hold.write_text(str(BATCHES + 1))
    process = clone.start(*repro)
    until(lambda: (clone.folder / "held").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    process.kill()
    hold.write_text("")
    process.communicate()  # until the training, which has its streams, ends too
    trained = results(clone)
    assert "train@mine" not in clone.read("dvc.lock")
    assert f"mine: resumed after epoch {EPOCHS} of {EPOCHS}" in clone.run(*repro)
    assert results(clone) == trained

    # Edited after the last look of the training at its parameters, and before DVC writes them down
    (clone.folder / "launcher").write_text(LAUNCHER)
    write_params(clone.folder, **changes, launcher="sh launcher")
    done = clone.attempt("dvc", "repro", "evaluate")
    assert done.returncode != 0, done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("evaluate: ")]
    assert f"{MODEL}: trained with seed 42, params.yaml has 43; run `dvc repro`, with --force" in line
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "metrics/accuracy.json").exists()
    assert results(clone) == trained
    forced = clone.run("dvc", "repro", "--force", "--single-item", "train@mine")
    assert (f"mine  1/{EPOCHS}  loss" in forced, "resumed" in forced) == (True, False)
    assert results(clone)[0] != trained[0]
