"""Each figure of `evaluate`, recomputed from the model files by torch, scikit-learn, scipy and statsmodels."""

import hashlib
import json
import os
import random
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
from stages.common.dataset import Counts, Split, read_info, write_dataset
from stages.common.errors import UserError
from stages.common.params import load_params
from stages.training.recipe import recipe_of
from stages.training.weights import Card, to_bytes

CLASSES, IMAGES = ["cat", "dog", "frog", "NA", 'say "x, y"'], 300
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
DECAYS = {"third": "ablation.weight_decay", "one": "train.weight_decay", "two": "train.weight_decay"}
RUNS = {run: {"model": "cnn", "weight_decay": decay} for run, decay in DECAYS.items()}
PAIRS = {"decay": ["one", "third"], "same": ["two", "one"]}


def network(classes: int) -> nn.Module:
    """SimpleCNN as the experiment describes it."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128), (128, 256)):
        pooling = [nn.MaxPool2d(2)] if outputs < 256 else []
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), *pooling, nn.ReLU()]
    parts = {"features": nn.Sequential(*layers), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts, fc=nn.Linear(256, classes)))


def pixels() -> torch.Tensor:
    with np.load("data/test.npz") as arrays:
        return torch.from_numpy((arrays["images"] / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def labels() -> np.ndarray:
    with np.load("data/test.npz") as arrays:
        return arrays["labels"]


@torch.no_grad()
def logits(run: str) -> np.ndarray:
    """What the model in the file says of the test images, in float64: N×classes."""
    weights = safetensors.torch.load_file(f"models/{run}.safetensors")
    model = network(len(weights["fc.bias"]))
    model.load_state_dict(weights)
    return model.double().eval()(pixels()).numpy()


def answers(run: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The predicted class, its probability, and whether it is right: N each."""
    said = logits(run)
    return said.argmax(1), torch.from_numpy(said).softmax(1).max(1).values.numpy(), said.argmax(1) == labels()


def history(run: str, held_out: str = "test") -> list[dict[str, float]]:
    """Three epochs of which the second is the best."""
    columns = f"epoch train_loss train_accuracy {held_out}_loss {held_out}_accuracy generalization_gap learning_rate"
    share = len(run) / 100
    rows = [(i, 1 / i, 0.7 + share, 0.2 * i, accuracy + share, 0.7 - accuracy, 0.1 / i) for i, accuracy in
            ((1, 0.25), (2, 0.625), (3, 0.5))]  # fmt: skip
    return [dict(zip(columns.split(), row, strict=True)) for row in rows]


@torch.no_grad()
def write_model(run: str, seed: int, held_out: str = "test") -> None:
    """Write a model that takes the images for any of the classes."""
    torch.manual_seed(seed)
    info = read_info()
    model = network(len(info.classes)).eval()
    for name, tensor in model.named_buffers():
        if name.endswith(("mean", "var")):
            tensor.uniform_(0.1, 0.3)
    model.fc.weight.normal_()
    said = model(pixels().float())
    model.fc.weight *= 2 / said.std(0)[:, None]
    model.fc.bias.copy_(-(2 * (said - model.fc.bias) / said.std(0)).mean(0))
    card = Card(recipe=recipe_of(load_params(), run), data=info, history=history(run, held_out))
    Path("models").mkdir(exist_ok=True)
    Path(f"models/{run}.safetensors").write_bytes(to_bytes(card, model.state_dict()))


@pytest.fixture
def write_project(tmp_path, monkeypatch, prepare) -> Callable[..., None]:
    """Write data, parameters and models into an empty folder; `truth` makes labels of what the runs predict."""
    monkeypatch.chdir(tmp_path)

    def write(classes: list[str] = CLASSES, validation: float = 0, truth: Callable | None = None, **changes: object):
        prepare(**{"runs": RUNS, "compare": PAIRS, "cnn__epochs": 3, "data__validation": validation} | changes)
        rng, counts = np.random.default_rng(0), Counts(train=40, test=IMAGES, validation=9 if validation else 0)
        data = {"classes": classes, "counts": counts, "validation": validation, "mean": MEAN, "std": STD}
        info, runs = read_info().model_copy(update=data), load_params().runs
        images = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
        test = Split(images, np.zeros(IMAGES, np.int64), np.array([f"{i % 7}/image {i}.png" for i in range(IMAGES)]))
        write_dataset(info, {"test": test})
        for seed, run in enumerate(runs):
            write_model(run, seed, "validation" if validation else "test")
        known = [answers(run)[0] for run in runs]  # each run knows another share of the labels
        who = rng.choice(4, IMAGES, p=[0.3, 0.45, 0.1, 0.15])
        drawn = rng.integers(0, len(classes), IMAGES)
        true = truth(*known) if truth else np.select([who == i for i in range(len(known))], known, drawn)
        write_dataset(info, {"test": test._replace(labels=true)})

    return write


@pytest.fixture
def project(write_project) -> Path:
    """A folder with three runs of five classes and two pairs to compare."""
    write_project()
    return Path.cwd()


def run_stage() -> dict:
    evaluate.main(Namespace())
    return json.loads(Path("metrics/evaluation.json").read_text())


def params() -> dict:
    return yaml.safe_load(Path("params.yaml").read_text())


def edit(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params() | changes, sort_keys=False))


def edit_info(**changes: object) -> None:
    path = Path("data/dataset.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def table(path: str) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def written() -> dict[str, bytes]:
    found = [path for folder in ("metrics", "plots") for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in sorted(found) if path.parent.name != "history"}


def refused(message: str) -> None:
    """Assert that the stage ends with this line, and that it has written nothing."""
    with pytest.raises(UserError, match=rf"^{message}.*$"):
        evaluate.main(Namespace())
    assert written() == {}


# Every figure


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_figures_of_a_run(write_project, keep):
    write_project(train__keep=keep)
    results, true = run_stage()["runs"], labels()
    assert list(results) == list(RUNS)
    assert len({found["accuracy"] for found in results.values()}) == 3
    for run, found in results.items():
        said, (_, sure, right) = logits(run), answers(run)
        chances, off, expected = torch.from_numpy(said).softmax(1).numpy(), 0.0, 0.0
        for held in np.unique(np.ceil(sure * 15)):  # Guo et al. 2017
            inside = np.ceil(sure * 15) == held
            counts = np.arange(inside.sum() + 1)
            off += abs(sure[inside].sum() - right[inside].sum()) / IMAGES
            expected += stats.poisson_binom(sure[inside]).pmf(counts) @ abs(counts - sure[inside].sum()) / IMAGES
        best = optimize.minimize_scalar(
            lambda t: log_loss(true, torch.from_numpy(said / t).softmax(1).numpy(), labels=range(5)),  # noqa: B023
            bounds=(0.02, 50), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        has, decay = params(), params()["ablation" if run == "third" else "train"]["weight_decay"]
        recipe = {"run": run, "model": "cnn", "seed": 42, "settings": has["cnn"], "augment": has["augment"]}
        assert found.pop("recipe") == recipe | {"train": has["train"] | {"weight_decay": decay}}
        assert found.pop("title") == "Simple CNN"
        assert found.pop("interval") == pytest.approx(proportion_confint(right.sum(), IMAGES, method="wilson"))
        by_hand = {
            "parameters": 391_946 - 5 * 257,  # with 10 classes, of which each has 256 weights and a bias
            "accuracy": right.mean(),
            "last_accuracy": 0.5 + len(run) / 100,
            "epoch": 2 if keep == "best" else 3,
            "best_epoch": 2,
            "gap": 0.2,
            "top2": top_k_accuracy_score(true, said, k=2),
            "loss": log_loss(true, chances, labels=range(5)),
            "ece": off,
            "ece_expected": expected,
            "temperature": best.x,
        }
        assert found == pytest.approx(by_hand, rel=1e-4)


def likeliest(gained: int, lost: int, difference: float) -> float:
    """The likeliest share of lost images, if that of the gained is larger by `difference`."""

    def unlikely(share: float) -> float:
        return -float(np.log([share + difference, share, 1 - 2 * share - difference]) @ counts)

    counts, bounds = [gained, lost, IMAGES - gained - lost], (max(0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12)
    return optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x


def test_the_figures_of_a_comparison(project):
    comparisons, right, ps = run_stage()["comparisons"], {run: answers(run)[2] for run in RUNS}, {}
    for name, (first, second) in PAIRS.items():
        found, gain = comparisons[name], right[first].astype(int) - right[second]
        gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
        ps[name] = mcnemar([[0, gained], [lost, 0]], exact=False, correction=False).pvalue
        assert [found[key] for key in ("runs", "only_right")] == [[first, second], [gained, lost]]
        assert [found["difference"], found["p"]] == pytest.approx([gain.mean(), ps[name]])
        for limit, z in zip(found["interval"], (1.959964, -1.959964), strict=True):  # Tango 1998
            deviation = np.sqrt((2 * likeliest(gained, lost, limit) + limit - limit**2) / IMAGES)
            assert (gain.mean() - limit) / deviation == pytest.approx(z, abs=1e-3)
    adjusted = dict(zip(ps, multipletests(list(ps.values()), method="holm")[1], strict=True))
    assert {name: found["adjusted_p"] for name, found in comparisons.items()} == pytest.approx(adjusted)
    shown = json.loads(Path("metrics/compare.json").read_text())
    assert list(shown) == list(PAIRS)
    for name, (first, second) in PAIRS.items():
        difference = right[first].mean() - right[second].mean()
        assert shown[name] == {"difference": round(difference, 6), "p": float(f"{adjusted[name]:.3g}")}
    accuracies = {run: round(of.mean(), 6) for run, of in right.items()}
    assert json.loads(Path("metrics/accuracy.json").read_text()) == accuracies


def test_the_tables_of_the_images(project):
    run_stage()
    known, actual, suspects = {run: answers(run) for run in RUNS}, [CLASSES[i] for i in labels()], {}
    names = [f"{i % 7}/image {i}.png" for i in range(IMAGES)]
    for run, (guess, sure, _) in known.items():
        found = table(f"plots/predictions/{run}.csv")
        assert list(found) == ["index", "image", "actual", "predicted", "confidence"]
        whole = [range(IMAGES), names, actual, [CLASSES[i] for i in guess]]
        assert found.drop(columns="confidence").T.values.tolist() == [list(column) for column in whole]
        assert np.allclose(found["confidence"], sure, atol=1e-5)
    for i, name in enumerate(names):
        guesses = {CLASSES[guess[i]] for guess, _, _ in known.values()}
        if len(guesses) == 1 and guesses != {actual[i]}:
            suspects[name] = min(sure[i] for _, sure, _ in known.values()), actual[i], *guesses
    found = table("plots/suspects.csv")
    assert list(found) == ["image", "label", "predicted", "confidence"]
    assert len(suspects) > 1
    assert found["image"].tolist() == sorted(suspects, key=suspects.__getitem__, reverse=True)
    assert found[["label", "predicted"]].values.tolist() == [list(suspects[name][1:]) for name in found["image"]]
    assert np.allclose(found["confidence"], [suspects[name][0] for name in found["image"]], atol=1e-5)


def test_the_tables_of_classes_and_of_confidence(project):
    run_stage()
    classes, bins = table("plots/per_class.csv"), table("plots/calibration.csv")
    assert list(classes) == ["run", "class", "images", "precision", "recall", "f1"]
    assert classes[["run", "class"]].values.tolist() == [[run, name] for run in RUNS for name in CLASSES]
    assert list(bins) == ["run", "lower", "upper", "images", "confidence", "accuracy"]
    assert list(bins["run"].unique()) == list(RUNS)
    for run in RUNS:
        guess, sure, right = answers(run)
        report = classification_report(labels(), guess, target_names=CLASSES, output_dict=True, zero_division=0)
        rows = [[report[name][key] for key in ("support", "precision", "recall", "f1-score")] for name in CLASSES]
        assert np.allclose(classes.loc[classes["run"] == run, ["images", "precision", "recall", "f1"]], rows)
        of_run = bins[bins["run"] == run]
        for row in of_run.itertuples():
            held, width = (sure > row.lower) & (sure <= row.upper), row.upper - row.lower
            by_hand = [1 / 15, held.sum(), sure[held].mean(), right[held].mean()]
            assert [width, row.images, row.confidence, row.accuracy] == pytest.approx(by_hand, abs=1e-5)
        assert of_run["images"].sum() == IMAGES


@pytest.mark.parametrize("validation", [0, 0.2])
def test_curves_come_from_the_models_whatever_lies_in_plots_and_the_accuracy_from_the_test_images(
    write_project, validation
):
    write_project(validation=validation)
    Path("plots/history").mkdir(parents=True)
    Path("plots/history/one.csv").write_text("epoch,test_accuracy\n1,0.99\n")  # edited, or restored by git
    found, curves = run_stage(), table("plots/curves.csv")
    rows = [{"run": run} | row for run in RUNS for row in history(run, "validation" if validation else "test")]
    assert list(curves) == list(rows[0])
    assert curves["run"].tolist() == [row.pop("run") for row in rows]
    assert np.allclose(curves.drop(columns="run"), pd.DataFrame(rows), rtol=1e-7)
    assert found["runs"]["one"]["accuracy"] == pytest.approx(answers("one")[2].mean())
    assert found["runs"]["one"]["last_accuracy"] == pytest.approx(0.53)
    assert found["parameters"] == pd.json_normalize(params(), sep=".").to_dict("records")[0]
    assert found["data"] == "ab" * 32
    metrics = [f"metrics/{name}.json" for name in ("accuracy", "compare", "evaluation")]
    tables = [f"plots/{name}.csv" for name in ("calibration", "curves", "per_class", "suspects")]
    assert list(written()) == sorted([*metrics, *tables, *(f"plots/predictions/{run}.csv" for run in RUNS)])
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in written().items()}
    assert found["files"] == {path: digest for path, digest in digests.items() if path not in metrics}


# Unusual, and right


def test_no_image_right(write_project):
    write_project(["a", "b"], truth=lambda guess: 1 - guess, runs={"one": RUNS["one"]}, compare={})
    found = run_stage()["runs"]["one"]
    assert (found["accuracy"], found["top2"]) == (0, 1)
    assert found["interval"] == pytest.approx([0, 3.841459 / (IMAGES + 3.841459)])
    assert table("plots/per_class.csv")[["precision", "recall", "f1"]].to_numpy().tolist() == [[0, 0, 0]] * 2


def test_more_classes_than_images(write_project):
    classes = [f"class {i}" for i in range(2 * IMAGES)]
    write_project(classes)
    expected = top_k_accuracy_score(labels(), logits("two"), k=2, labels=range(2 * IMAGES))
    assert run_stage()["runs"]["two"]["top2"] == pytest.approx(expected)
    assert table("plots/per_class.csv")["class"].tolist() == classes * 3


def test_deleted_runs_and_pairs_are_passed_over_and_so_are_other_files_beside_the_models(project):
    before = run_stage()
    Path("models/other.safetensors").write_bytes(b"of somebody")
    edit(runs={"one": RUNS["one"], "two": RUNS["two"]}, compare={"same": ["two", "one"]})
    found = run_stage()
    assert found["runs"] == {run: before["runs"][run] for run in ("one", "two")}
    assert list(json.loads(Path("metrics/accuracy.json").read_text())) == ["one", "two"]
    assert list(found["comparisons"]) == list(json.loads(Path("metrics/compare.json").read_text())) == ["same"]
    assert "plots/predictions/third.csv" not in found["files"]


def test_another_process_gives_the_same_bytes_and_leaves_models_and_checkpoints_alone(project, stage):
    checkpoint = Path(".cache/training/one.safetensors")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"of a training that DVC has not stored")
    kept = [checkpoint, *Path("models").iterdir()]
    contents = [path.read_bytes() for path in kept]
    run_stage()
    before = written()
    done = stage("stages.evaluate", PYTHONHASHSEED="7")
    assert (done.returncode, done.stderr) == (0, "")
    shares = json.loads(before["metrics/accuracy.json"])
    assert done.stdout.splitlines() == [f"{run}: {shares[run]:.2%} of {IMAGES} test images are right" for run in RUNS]
    assert written() == before
    assert [path.read_bytes() for path in kept] == contents


# What does not fit


def model_of(run: str) -> bytes:
    return Path(f"models/{run}.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: edit(seed=43), r"models/third\.safetensors: trained with seed 42, params\.yaml has 43; run `dvc r"),
        (lambda: edit(cnn={"epochs": 4}), r"models/third\S+: trained with settings\.epochs 3, params\.yaml has 4"),
        (lambda: edit(ablation={"weight_decay": 0.1}), r"models/third\S+: trained with train\.weight_decay 0\.0001, p"),
        (lambda: os.remove("models/one.safetensors"), r"models/one\.safetensors: no such file; make it with `dvc r"),
        (lambda: Path("models/two.safetensors").write_bytes(model_of("one")), r"models/two\S+: trained with run 'one'"),
        (lambda: edit_info(mean=[0.4, 0.5, 0.61]), r"models/third\S+: trained on other images than data/ holds"),
        (lambda: edit_info(sha256="cd" * 32), r"models/third\S+: trained on other images than data/ holds"),
        (lambda: edit_info(source="digits"), r"data/dataset\.json: made with data\.source 'digits', params\.yaml has"),
        (lambda: edit_info(image_size=9), r"data/dataset\.json: made with data\.image_size 9, params\.yaml has 8"),
        (lambda: edit(compare={"x": ["one", "four"]}), r"params\.yaml: .*compare\.x = \['one', 'four'\]: must name "),
        (lambda: edit(cnn={"epochs": 0}), r"params\.yaml: section cnn: epochs = 0"),
        (lambda: os.remove("data/test.npz"), r"data/test\.npz: no such file; make it with `dvc repro"),
        (lambda: Path("data/test.npz").write_bytes(b"PK"), r"data/test\.npz: cannot be read"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_written(project, spoil, message):
    spoil()
    refused(message)


def test_a_model_with_a_wrong_bit_anywhere_is_refused(project):
    places, whole = random.Random(0), model_of("one")
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [places.randrange(end) for end in (8, header, len(whole)) for _ in range(8)]:
        content = bytearray(whole)
        content[place] ^= 1 << places.randrange(8)
        Path("models/one.safetensors").write_bytes(content)
        refused(r"models/one\.safetensors: ")


@pytest.fixture
def before_each_open():
    """Call a function whenever this process is about to open the file of this name."""
    watched: dict[str, Callable[[], object]] = {}

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            watched.get(os.fspath(arguments[0]), bool)()

    sys.addaudithook(hook)  # for good
    yield watched.__setitem__
    watched.clear()


@pytest.mark.parametrize("seen", ["AAA", "ABA", "ABB", "AAB", "BAB"])
def test_a_model_swapped_meanwhile_is_not_credited_with_the_figures_of_the_other(project, before_each_open, seen):
    """Each time that the file is opened, it is the next of these; what is used must be what was hashed."""
    path, models, accuracies, opened = Path("models/one.safetensors"), {"A": model_of("one")}, {}, []
    write_model("one", 77)
    models["B"] = model_of("one")
    for name, content in models.items():
        path.write_bytes(content)
        accuracies[name] = answers("one")[2].mean()
    assert accuracies["A"] != accuracies["B"]

    def swap() -> None:
        opened.append(seen[min(len(opened), 2)])
        Path("next").write_bytes(models[opened[-1]])
        Path("next").replace(path)

    before_each_open(str(path), swap)
    if seen == "AAA":
        assert run_stage()["runs"]["one"]["accuracy"] == pytest.approx(accuracies["A"])
    else:
        try:
            used = run_stage()["runs"]["one"]["accuracy"]
        except UserError as error:
            assert str(error).startswith(f"changed while this stage ran: {path}. Nothing was written")
            assert written() == {}
        else:  # no other model was ever there
            assert ({*opened}, used) == ({seen[0]}, pytest.approx(accuracies[seen[0]]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: edit(study={"seeds": 5, "margin": 0.2}), "the parameters"),
        (lambda: Path("models/third.safetensors").write_bytes(b"another"), r"models/third\.safetensors"),
        (lambda: edit_info(name="another"), r"data/dataset\.json"),
    ],
)
def test_what_is_edited_while_it_runs_is_not_credited_with_the_results(project, before_each_open, change, named):
    before_each_open("models/one.safetensors", change)  # the second that is read
    refused(f"changed while this stage ran: {named}. Nothing was written")
