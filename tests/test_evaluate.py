"""Each figure of `evaluate` is recomputed from the model files by torch, scikit-learn, scipy and statsmodels."""

import hashlib
import json
import os
import random
import re
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from scipy import optimize, stats
from sklearn.metrics import classification_report, log_loss, top_k_accuracy_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from torch import nn

from stages import evaluate
from stages.common.dataset import Counts, DatasetInfo, Split, read_info, write_dataset
from stages.common.errors import UserError
from stages.common.params import load_params
from stages.training.recipe import recipe_of
from stages.training.weights import Card, to_bytes

CLASSES, IMAGES = ["cat", "dog", "frog", "NA", 'say "x, y"'], 300
DECAYS = {"third": "ablation.weight_decay", "one": "train.weight_decay", "two": "train.weight_decay"}
RUNS = {run: {"model": "cnn", "weight_decay": decay} for run, decay in DECAYS.items()}
PAIRS = {"decay": ["one", "third"], "same": ["two", "one"]}


def network(classes: int) -> nn.Module:
    """SimpleCNN as the experiment describes it."""

    def convolution(inputs: int, outputs: int, *pooling: nn.Module) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), *pooling, nn.ReLU()]

    widths, pools = (3, 32, 64, 128, 256), ([nn.MaxPool2d(2)], [nn.MaxPool2d(2)], [nn.MaxPool2d(2)], [])
    layers = [layer for i in range(4) for layer in convolution(widths[i], widths[i + 1], *pools[i])]
    parts = {"features": nn.Sequential(*layers), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts, fc=nn.Linear(256, classes)))


def pixels(info: DatasetInfo) -> torch.Tensor:
    with np.load("data/test.npz") as arrays:
        x = (arrays["images"] / 255 - np.array(info.mean)) / np.array(info.std)
    return torch.from_numpy(x).permute(0, 3, 1, 2)


@torch.no_grad()
def logits(run: str) -> np.ndarray:
    """What the model in the file says of the test images, in float64: N×classes."""
    info = DatasetInfo.model_validate_json(Path("data/dataset.json").read_bytes())
    model = network(len(info.classes))
    model.load_state_dict(safetensors.torch.load_file(f"models/{run}.safetensors"))
    return model.double().eval()(pixels(info)).numpy()


def history(run: str, held_out: str = "test") -> list[dict[str, float]]:
    """Three epochs of which the second is the best."""
    first = len(run) / 100
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / 3 + first,
            "train_accuracy": 0.7 + first,
            f"{held_out}_loss": 0.1 + 0.2 * epoch,
            f"{held_out}_accuracy": accuracy + first,
            "generalization_gap": 0.7 - accuracy,
            "learning_rate": 0.1 / epoch,
        }
        for epoch, accuracy in ((1, 0.25), (2, 0.625), (3, 0.5))
    ]


@torch.no_grad()
def write_model(run: str, seed: int, info: DatasetInfo, rows: list[dict[str, float]] | None = None) -> None:
    """Write a model that takes the images for any of the classes."""
    torch.manual_seed(seed)
    model = network(len(info.classes)).eval()
    for name, tensor in model.named_buffers():
        if name.endswith(("mean", "var")):
            tensor.uniform_(0.1, 0.3)
    model.fc.weight.normal_()
    model.fc.bias.zero_()
    said = model(pixels(info).float())
    model.fc.weight *= 2 / said.std(0)[:, None]
    model.fc.bias -= (2 * said / said.std(0)).mean(0)
    card = Card(recipe=recipe_of(load_params(), run), data=info, history=rows or history(run))
    Path("models").mkdir(exist_ok=True)
    Path(f"models/{run}.safetensors").write_bytes(to_bytes(card, model.state_dict()))


def write_project(
    prepare: Callable[..., None],
    classes: list[str] = CLASSES,
    validation: float = 0,
    truth: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None,
    **changes: object,
) -> None:
    """Write data, parameters and models; `truth` makes the labels from what the runs predict."""
    defaults = {"runs": RUNS, "compare": PAIRS, "cnn__epochs": 3, "data__validation": validation}
    prepare(**defaults | changes)
    rng = np.random.default_rng(0)
    info = read_info().model_copy(
        update={
            "classes": classes,
            "counts": Counts(train=40, test=IMAGES, validation=9 if validation else 0),
            "validation": validation,
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.3, 0.25],
        }
    )
    images = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    names = np.array([f"{i % 7}/image {i}.png" for i in range(IMAGES)])

    def write(labels: np.ndarray) -> None:
        train = Split(images[:40], labels[:40], names[:40])
        write_dataset(info, {"train": train, "test": Split(images, labels, names)})

    write(np.zeros(IMAGES, dtype=np.int64))
    for seed, run in enumerate(load_params().runs):
        write_model(run, seed, info, history(run, "validation" if validation else "test"))
    guesses = {run: logits(run).argmax(1) for run in load_params().runs}
    write(truth(guesses) if truth else mixed(guesses, len(classes)))


def mixed(guesses: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """Labels of which each run knows another share."""
    rng = np.random.default_rng(1)
    who = rng.choice([*guesses, "nobody"], IMAGES, p=[0.3, 0.45, 0.1, 0.15] if len(guesses) == 3 else None)
    return np.select([who == run for run in guesses], list(guesses.values()), rng.integers(0, classes, IMAGES))


@pytest.fixture
def project(tmp_path, monkeypatch, prepare) -> Path:
    """A folder with three runs of five classes and two pairs to compare."""
    monkeypatch.chdir(tmp_path)
    write_project(prepare)
    return tmp_path


def run_stage() -> dict:
    evaluate.main(Namespace())
    return json.loads(Path("metrics/evaluation.json").read_text())


def labels() -> np.ndarray:
    with np.load("data/test.npz") as arrays:
        return arrays["labels"]


def table(path: str) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def written() -> dict[str, bytes]:
    found = [path for folder in ("metrics", "plots") for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in found if path.parent.name != "history"}


def edit(**changes: object) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text()) | changes
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def refused(message: str) -> None:
    """Assert that the stage ends with this line, and that it has written nothing."""
    before = written()
    with pytest.raises(UserError) as error:
        evaluate.main(Namespace())
    assert re.match(message, str(error.value))
    assert "\n" not in str(error.value)
    assert written() == before


# Every figure


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_figures_of_a_run(tmp_path, monkeypatch, prepare, keep):
    monkeypatch.chdir(tmp_path)
    write_project(prepare, train__keep=keep)
    results, true, params = run_stage()["runs"], labels(), yaml.safe_load(Path("params.yaml").read_text())
    assert list(results) == list(RUNS)
    assert len({found["accuracy"] for found in results.values()}) == 3
    for run, found in results.items():
        said = logits(run)
        chances, correct = torch.from_numpy(said).softmax(1).numpy(), said.argmax(1) == true
        confidence = chances.max(1)
        bins = np.ceil(confidence * 15).astype(int)
        in_bins = [(confidence[bins == held], correct[bins == held]) for held in np.unique(bins)]
        spread = [stats.poisson_binom(sure) for sure, _ in in_bins]
        counts = [np.arange(len(sure) + 1) for sure, _ in in_bins]
        best = optimize.minimize_scalar(
            lambda t: log_loss(true, torch.from_numpy(said / t).softmax(1).numpy(), labels=range(5)),  # noqa: B023
            bounds=(0.02, 50), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        decay = params["ablation" if run == "third" else "train"]["weight_decay"]
        assert found.pop("recipe") == {
            "run": run, "model": "cnn", "seed": 42, "settings": params["cnn"], "augment": params["augment"],
            "train": params["train"] | {"weight_decay": decay},
        }  # fmt: skip
        assert found.pop("title") == "Simple CNN"
        assert found.pop("interval") == pytest.approx(proportion_confint(correct.sum(), IMAGES, method="wilson"))
        assert found == pytest.approx(
            {
                "parameters": 391_946 - 5 * 257,  # with 10 classes, of which each has 256 weights and a bias
                "accuracy": correct.mean(),
                "last_accuracy": 0.5 + len(run) / 100,
                "epoch": 2 if keep == "best" else 3,
                "best_epoch": 2,
                "gap": 0.2,
                "top2": top_k_accuracy_score(true, said, k=2),
                "loss": log_loss(true, chances, labels=range(5)),
                "ece": sum(abs(sure.sum() - right.sum()) for sure, right in in_bins) / IMAGES,
                "ece_expected": sum(
                    float(of.pmf(n) @ abs(n - sure.sum())) for of, n, (sure, _) in zip(spread, counts, in_bins, strict=True)
                ) / IMAGES,
                "temperature": best.x,
            },
            rel=1e-4,
        )  # fmt: skip


def likeliest(gained: int, lost: int, difference: float) -> float:
    """The share of lost images, if that of the gained is larger by `difference`, by the multinomial likelihood."""
    counts = np.array([gained, lost, IMAGES - gained - lost])

    def unlikely(share: float) -> float:
        return float(-counts @ np.log([share + difference, share, 1 - 2 * share - difference]))

    low, high = max(0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
    return optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x


def test_the_figures_of_a_comparison(project):
    comparisons, true = run_stage()["comparisons"], labels()
    correct = {run: logits(run).argmax(1) == true for run in RUNS}
    ps = {}
    for name, (first, second) in PAIRS.items():
        found, gain = comparisons[name], correct[first].astype(int) - correct[second]
        gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
        ps[name] = mcnemar([[0, gained], [lost, 0]], exact=False, correction=False).pvalue
        assert found["runs"] == [first, second]
        assert found["difference"] == pytest.approx(gain.mean())
        assert found["only_right"] == [gained, lost]
        assert found["p"] == pytest.approx(ps[name])
        for limit, z in zip(found["interval"], (1.959964, -1.959964), strict=True):  # Tango 1998
            share = likeliest(gained, lost, limit)
            deviation = np.sqrt((2 * share + limit - limit**2) / IMAGES)
            assert (gain.mean() - limit) / deviation == pytest.approx(z, abs=1e-3)
    adjusted = dict(zip(ps, multipletests(list(ps.values()), method="holm")[1], strict=True))
    assert {name: found["adjusted_p"] for name, found in comparisons.items()} == pytest.approx(adjusted)
    assert json.loads(Path("metrics/compare.json").read_text()) == {
        name: {
            "difference": round(correct[first].mean() - correct[second].mean(), 6),
            "p": float(np.format_float_positional(adjusted[name], 3, fractional=False)),
        }
        for name, (first, second) in PAIRS.items()
    }
    assert json.loads(Path("metrics/accuracy.json").read_text()) == pytest.approx(
        {run: right.mean() for run, right in correct.items()}, abs=1e-6
    )


def test_the_tables_of_the_images(project):
    run_stage()
    true, guesses = labels(), {run: logits(run) for run in RUNS}
    with np.load("data/test.npz") as arrays:
        names = arrays["names"].tolist()
    sure = {run: torch.from_numpy(said).softmax(1).max(1).values.numpy() for run, said in guesses.items()}
    for run, said in guesses.items():
        found = table(f"plots/predictions/{run}.csv")
        assert list(found) == ["index", "image", "actual", "predicted", "confidence"]
        assert found["index"].tolist() == list(range(IMAGES))
        assert found["image"].tolist() == names
        assert found["actual"].tolist() == [CLASSES[i] for i in true]
        assert found["predicted"].tolist() == [CLASSES[i] for i in said.argmax(1)]
        assert np.allclose(found["confidence"], sure[run], atol=1e-5)
    agreed = {
        names[i]: (min(sure[run][i] for run in RUNS), CLASSES[true[i]], CLASSES[guesses["one"][i].argmax()])
        for i in range(IMAGES)
        if len({said[i].argmax() for said in guesses.values()} | {true[i]}) == 2
        and len({said[i].argmax() for said in guesses.values()}) == 1
    }
    suspects = table("plots/suspects.csv")
    assert list(suspects) == ["image", "label", "predicted", "confidence"]
    assert len(agreed) > 1
    assert suspects["image"].tolist() == sorted(agreed, key=agreed.__getitem__, reverse=True)[:50]
    assert suspects[["label", "predicted"]].values.tolist() == [list(agreed[name][1:]) for name in suspects["image"]]
    assert np.allclose(suspects["confidence"], [agreed[name][0] for name in suspects["image"]], atol=1e-5)


def test_the_tables_of_classes_and_of_confidence(project):
    run_stage()
    true, classes, bins = labels(), table("plots/per_class.csv"), table("plots/calibration.csv")
    assert list(classes) == ["run", "class", "images", "precision", "recall", "f1"]
    assert classes[["run", "class"]].values.tolist() == [[run, name] for run in RUNS for name in CLASSES]
    assert list(bins) == ["run", "lower", "upper", "images", "confidence", "accuracy"]
    assert list(bins["run"].unique()) == list(RUNS)
    for run in RUNS:
        said = logits(run)
        report = classification_report(true, said.argmax(1), target_names=CLASSES, output_dict=True, zero_division=0)
        rows = [[report[name][key] for key in ("support", "precision", "recall", "f1-score")] for name in CLASSES]
        assert np.allclose(classes.loc[classes["run"] == run, ["images", "precision", "recall", "f1"]], rows)
        sure, correct = torch.from_numpy(said).softmax(1).max(1).values.numpy(), said.argmax(1) == true
        for row in bins[bins["run"] == run].itertuples():
            held = (sure > row.lower) & (sure <= row.upper)
            assert row.upper - row.lower == pytest.approx(1 / 15)
            assert [row.images, row.confidence, row.accuracy] == pytest.approx(
                [held.sum(), sure[held].mean(), correct[held].mean()], abs=1e-5
            )
        assert bins.loc[bins["run"] == run, "images"].sum() == IMAGES


@pytest.mark.parametrize("validation", [0, 0.2])
def test_curves_and_parameters_come_from_the_models_and_the_accuracy_from_the_test_images(
    tmp_path, monkeypatch, prepare, validation
):
    """History files that somebody edited, or that git restored, have no effect."""
    monkeypatch.chdir(tmp_path)
    write_project(prepare, validation=validation)
    Path("plots/history").mkdir(parents=True)
    Path("plots/history/one.csv").write_text("epoch,test_accuracy\n1,0.99\n")
    found = run_stage()
    held_out = "validation" if validation else "test"
    rows = [{"run": run} | row for run in RUNS for row in history(run, held_out)]
    curves = table("plots/curves.csv")
    assert list(curves) == list(rows[0])
    assert curves["run"].tolist() == [row.pop("run") for row in rows]
    assert np.allclose(curves.drop(columns="run"), pd.DataFrame(rows), rtol=1e-7)
    assert found["runs"]["one"]["accuracy"] == pytest.approx((logits("one").argmax(1) == labels()).mean())
    assert found["runs"]["one"]["last_accuracy"] == pytest.approx(0.53)
    params = yaml.safe_load(Path("params.yaml").read_text())
    assert found["parameters"] == pd.json_normalize(params, sep=".").to_dict("records")[0]
    assert found["data"] == "ab" * 32
    tables = {path: hashlib.sha256(content).hexdigest() for path, content in written().items() if "metrics" not in path}
    assert found["files"] == tables
    assert sorted(written()) == sorted(
        [
            *(f"metrics/{name}.json" for name in ("accuracy", "compare", "evaluation")),
            *(f"plots/{name}.csv" for name in ("calibration", "curves", "per_class", "suspects")),
            *(f"plots/predictions/{run}.csv" for run in RUNS),
        ]
    )


# Unusual, and right


def test_no_image_right(tmp_path, monkeypatch, prepare):
    monkeypatch.chdir(tmp_path)
    one = {"runs": {"one": RUNS["one"]}, "compare": {}}
    write_project(prepare, classes=["a", "b"], truth=lambda guesses: 1 - guesses["one"], **one)
    found = run_stage()["runs"]["one"]
    assert (found["accuracy"], found["top2"]) == (0, 1)
    assert found["interval"] == pytest.approx([0, 3.841459 / (IMAGES + 3.841459)])
    assert table("plots/per_class.csv")[["precision", "recall", "f1"]].to_numpy().tolist() == [[0, 0, 0]] * 2


def test_more_classes_than_images(tmp_path, monkeypatch, prepare):
    monkeypatch.chdir(tmp_path)
    classes = [f"class {i}" for i in range(2 * IMAGES)]
    write_project(prepare, classes=classes)
    found = run_stage()["runs"]["two"]
    assert found["top2"] == pytest.approx(top_k_accuracy_score(labels(), logits("two"), k=2, labels=range(2 * IMAGES)))
    assert table("plots/per_class.csv")["class"].tolist() == classes * 3


def test_runs_and_pairs_that_are_deleted_are_passed_over_and_so_are_other_files_beside_the_models(project):
    before = run_stage()
    Path("models/other.safetensors").write_bytes(b"of somebody")
    edit(runs={"one": RUNS["one"], "two": RUNS["two"]}, compare={"same": ["two", "one"]})
    found = run_stage()
    assert found["runs"] == {run: before["runs"][run] for run in ("one", "two")}
    assert list(found["comparisons"]) == ["same"]
    assert list(json.loads(Path("metrics/accuracy.json").read_text())) == ["one", "two"]
    assert list(json.loads(Path("metrics/compare.json").read_text())) == ["same"]
    assert "plots/predictions/third.csv" not in found["files"]


def test_another_process_gives_the_same_bytes_and_leaves_checkpoints_and_models_alone(project, stage):
    run_stage()
    before = written()
    checkpoint = Path(".cache/training/one.safetensors")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of a training that DVC has not stored")
    models = {path: path.read_bytes() for path in Path("models").iterdir()}
    done = stage("stages.evaluate", PYTHONHASHSEED="7")
    assert (done.returncode, done.stderr) == (0, "")
    shares = json.loads(before["metrics/accuracy.json"])
    assert done.stdout.splitlines() == [f"{run}: {shares[run]:.2%} of {IMAGES} test images are right" for run in RUNS]
    assert written() == before
    assert checkpoint.exists()
    assert {path: path.read_bytes() for path in Path("models").iterdir()} == models


# What does not fit


def edited_info(**changes: object) -> None:
    path = Path("data/dataset.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: edit(seed=43), r"models/third\.safetensors: trained with seed 42, params\.yaml has 43; run `dvc repro`, or with --fo"),
        (lambda: edit(cnn={"epochs": 4}), r"models/third\.safetensors: trained with settings\.epochs 3, params\.yaml has 4"),
        (lambda: edit(ablation={"weight_decay": 0.1}), r"models/third\S+: trained with train\.weight_decay 0\.0001, p"),
        (lambda: Path("models/one.safetensors").replace("models/two.safetensors"), r"models/one\S+: no such file"),
        (lambda: Path("models/two.safetensors").write_bytes(Path("models/one.safetensors").read_bytes()),
         r"models/two\.safetensors: trained with run 'one', params\.yaml has 'two'"),
        (lambda: edited_info(mean=[0.4, 0.5, 0.61]), r"models/third\S+: trained on other images than data/ holds"),
        (lambda: edited_info(sha256="cd" * 32), r"models/third\S+: trained on other images than data/ holds"),
        (lambda: edited_info(source="digits"), r"data/dataset\.json: made with data\.source 'digits', params\.yaml has 'im"),
        (lambda: edited_info(image_size=9), r"data/dataset\.json: made with data\.image_size 9, params\.yaml has 8"),
        (lambda: edit(compare={"x": ["one", "four"]}), r"params\.yaml: .*compare\.x = \['one', 'four'\]: must name two"),
        (lambda: edit(cnn={"epochs": 0}), r"params\.yaml: section cnn: epochs = 0"),
        (lambda: Path("data/test.npz").unlink(), r"data/test\.npz: no such file; make it with `dvc repro"),
        (lambda: Path("data/test.npz").write_bytes(b"PK"), r"data/test\.npz: cannot be read"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_written(project, spoil, message):
    spoil()
    refused(message)


def test_a_model_with_a_wrong_bit_anywhere_is_refused(project):
    path, places = Path("models/one.safetensors"), random.Random(0)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [places.randrange(end) for end in [8, header, len(whole)] for _ in range(8)]:
        content = bytearray(whole)
        content[place] ^= 1 << places.randrange(8)
        path.write_bytes(content)
        refused(r"models/one\.safetensors: ")
    path.write_bytes(whole[:-4])
    refused(r"models/one\.safetensors: ")


@pytest.fixture
def before_each_open():
    """Call a function whenever this process is about to open a file of this name."""
    watched: dict[str, Callable[[], None]] = {}

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            watched.get(os.fspath(arguments[0]), lambda: None)()

    sys.addaudithook(hook)  # for good
    yield watched.__setitem__
    watched.clear()


@pytest.mark.parametrize("seen", ["ABA", "ABB", "AAB", "BAB"])
def test_a_model_swapped_while_it_is_tested_is_not_credited_with_the_figures_of_the_other(
    project, prepare, before_each_open, seen
):
    """Each time that the file is opened, it is the model named next; what is used must be what was hashed."""
    path = Path("models/one.safetensors")
    other, models = project / "other", {"A": path.read_bytes()}
    write_model("one", 77, read_info())
    models["B"] = path.read_bytes()
    accuracies = {}
    for name, content in models.items():
        path.write_bytes(content)
        accuracies[name] = run_stage()["runs"]["one"]["accuracy"]
    assert accuracies["A"] != accuracies["B"]
    for name in written():
        Path(name).unlink()

    opened: list[str] = []

    def swap() -> None:
        opened.append(seen[min(len(opened), 2)])
        other.write_bytes(models[opened[-1]])
        other.replace(path)

    before_each_open(str(path), swap)
    try:
        found = run_stage()["runs"]["one"]["accuracy"]
    except UserError as error:
        assert str(error).startswith("changed while this stage ran: models/one.safetensors. Nothing was written")
        assert not written()
    else:
        assert set(opened) == {seen[0]}  # no other was ever there
        assert found == accuracies[seen[0]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: edit(study={"seeds": 5, "margin": 0.2}), "the parameters"),
        (lambda: Path("models/third.safetensors").write_bytes(b"another"), r"models/third\.safetensors"),
        (lambda: edited_info(name="another"), r"data/dataset\.json"),
    ],
)
def test_what_is_edited_while_it_runs_is_not_credited_with_the_results(project, before_each_open, change, named):
    before_each_open("models/one.safetensors", change)  # the second that is read
    refused(f"changed while this stage ran: {named}. Nothing was written")
