"""Each figure of `evaluate`, recomputed from the model files by torch, scikit-learn, scipy and statsmodels."""

import hashlib
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from scipy import optimize, stats
from sklearn.metrics import log_loss, top_k_accuracy_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from stages import evaluate
from stages.common.dataset import Counts, Split, read_info, write_dataset
from stages.common.errors import UserError
from stages.common.params import load_params
from stages.evaluation.significance import compare_on_images
from stages.models.cnn import Settings, build
from stages.training.recipe import recipe_of
from stages.training.weights import Card, to_bytes

CLASSES, IMAGES = ["cat", "dog", "frog", "NA", 'say "x, y"'], 300
NAMES = [f"{i % 7}/image {i}.png" for i in range(IMAGES)]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
DECAYS = {"third": "ablation.weight_decay", "one": "train.weight_decay", "two": "train.weight_decay"}
RUNS = {run: {"model": "cnn", "weight_decay": decay} for run, decay in DECAYS.items()}
PAIRS = {"decay": ["one", "third"], "same": ["two", "one"]}


def pixels() -> torch.Tensor:
    return torch.from_numpy((np.load("data/test.npz")["images"] / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def labels() -> np.ndarray:
    return np.load("data/test.npz")["labels"]


@torch.no_grad()
def logits(run: str) -> np.ndarray:
    """What the model in the file says of the test images, in float64: N×classes."""
    model = build(Settings(epochs=3), len(CLASSES))
    model.load_state_dict(safetensors.torch.load_file(f"models/{run}.safetensors"))
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
    model = build(Settings(epochs=3), len(CLASSES)).eval()
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
    """Write data, parameters and models into an empty folder."""
    monkeypatch.chdir(tmp_path)

    def write(validation: float = 0, **changes: object) -> None:
        prepare(**{"runs": RUNS, "compare": PAIRS, "cnn__epochs": 3, "data__validation": validation} | changes)
        rng, counts = np.random.default_rng(0), Counts(train=40, test=IMAGES, validation=9 if validation else 0)
        data = {"classes": CLASSES, "counts": counts, "validation": validation, "mean": MEAN, "std": STD}
        info, runs = read_info().model_copy(update=data), load_params().runs
        images = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
        test = Split(images, np.zeros(IMAGES, np.int64), np.array(NAMES))
        write_dataset(info, {"test": test})
        for seed, run in enumerate(runs):
            write_model(run, seed, "validation" if validation else "test")
        known = [answers(run)[0] for run in runs]  # each run knows another share of the labels
        who = rng.choice(4, IMAGES, p=[0.3, 0.45, 0.1, 0.15])
        true = np.select([who == i for i in range(len(known))], known, rng.integers(0, len(CLASSES), IMAGES))
        write_dataset(info, {"test": test._replace(labels=true)})

    return write


@pytest.fixture
def project(write_project) -> None:
    """A folder with three runs of five classes and two pairs to compare."""
    write_project()


def run_stage() -> dict:
    evaluate.main(Namespace())
    return json.loads(Path("metrics/evaluation.json").read_text())


def params(**changes: object) -> dict:
    return yaml.safe_load(Path("params.yaml").read_text()) | changes


def edit(**changes: object) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params(**changes), sort_keys=False))


def edit_info(**changes: object) -> None:
    path = Path("data/dataset.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def written() -> dict[str, bytes]:
    found = [path for folder in ("metrics", "plots") for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in sorted(found) if path.parent.name != "history"}


def refused(message: str) -> None:
    """Assert that the stage ends with this line, and that it has written nothing."""
    with pytest.raises(UserError, match=rf"^{message}.*$"):
        evaluate.main(Namespace())
    assert written() == {}


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


def test_the_figures_of_a_comparison(project, capsys):
    comparisons, right, ps = run_stage()["comparisons"], {run: answers(run)[2] for run in RUNS}, {}
    for name, (first, second) in PAIRS.items():
        found, gain = comparisons[name], right[first].astype(int) - right[second]
        gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
        ps[name] = mcnemar([[0, gained], [lost, 0]], exact=False, correction=False).pvalue
        assert [found[key] for key in ("runs", "only_right")] == [[first, second], [gained, lost]]
        assert [found["difference"], found["p"]] == pytest.approx([gain.mean(), ps[name]])
        assert found["interval"] == pytest.approx(compare_on_images(right[first], right[second]).interval)  # Tango 1998
    adjusted = dict(zip(ps, multipletests(list(ps.values()), method="holm")[1], strict=True))
    assert {name: found["adjusted_p"] for name, found in comparisons.items()} == pytest.approx(adjusted)
    assert json.loads(Path("metrics/compare.json").read_text()) == {
        name: {"difference": round(found["difference"], 6), "p": found["adjusted_p"]}
        for name, found in comparisons.items()
    }
    said = [f"{run}: {of.mean():.2%} of {IMAGES} test images are right" for run, of in right.items()]
    assert capsys.readouterr().out.splitlines() == said
    accuracies = {run: round(of.mean(), 6) for run, of in right.items()}
    assert json.loads(Path("metrics/accuracy.json").read_text()) == accuracies


@pytest.mark.parametrize("validation", [0, 0.2])
def test_curves_come_from_the_models_whatever_lies_in_plots_and_the_accuracy_from_the_test_images(
    write_project, validation
):
    write_project(validation=validation)
    Path("plots/history").mkdir(parents=True)
    Path("plots/history/one.csv").write_text("epoch,test_accuracy\n1,0.99\n")  # edited, or restored by git
    found, curves = run_stage(), pd.read_csv("plots/curves.csv")
    rows = [{"run": run} | row for run in RUNS for row in history(run, "validation" if validation else "test")]
    assert list(curves) == list(rows[0])
    assert curves["run"].tolist() == [row.pop("run") for row in rows]
    assert np.allclose(curves.drop(columns="run"), pd.DataFrame(rows), rtol=1e-7)
    assert found["runs"]["one"]["accuracy"] == pytest.approx(answers("one")[2].mean())
    assert found["runs"]["one"]["last_accuracy"] == pytest.approx(0.53)
    expected = pd.json_normalize(params(), sep=".").drop(columns=["data.path"]).to_dict("records")[0]
    unread = ("launcher", "resnet.", "torchvision.")  # of no training
    assert found["parameters"] == {name: value for name, value in expected.items() if not name.startswith(unread)}
    assert found["data"] == "ab" * 32
    metrics = [f"metrics/{name}.json" for name in ("accuracy", "compare", "evaluation")]
    tables = [f"plots/{name}.csv" for name in ("calibration", "curves", "per_class", "suspects")]
    assert list(written()) == sorted([*metrics, *tables, *(f"plots/predictions/{run}.csv" for run in RUNS)])
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in written().items()}
    assert found["files"] == {path: digest for path, digest in digests.items() if path not in metrics}


def test_deleted_runs_and_pairs_are_passed_over_and_so_are_other_files_beside_the_models(project):
    before = run_stage()
    Path("models/other.safetensors").write_bytes(b"of somebody")
    edit(runs={"one": RUNS["one"], "two": RUNS["two"]}, compare={"same": ["two", "one"]})
    found = run_stage()
    assert found["runs"] == {run: before["runs"][run] for run in ("one", "two")}
    assert list(json.loads(Path("metrics/accuracy.json").read_text())) == ["one", "two"]
    assert list(found["comparisons"]) == list(json.loads(Path("metrics/compare.json").read_text())) == ["same"]
    assert "plots/predictions/third.csv" not in found["files"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: edit(ablation={"weight_decay": 0.1}), r"models/third\S+: trained with train\.weight_decay 0\.0001"),
        (lambda: shutil.copy("models/one.safetensors", "models/two.safetensors"), r"models/two\S+: trained with run"),
        (lambda: edit_info(mean=[0.4, 0.5, 0.61]), r"models/third\S+: trained on other images than data/ holds; train"),
        (lambda: edit_info(test_share=0.3), r"data/dataset\.json: made with data\.test_share 0\.3, params"),
        (lambda: edit_info(image_size=9), r"data/dataset\.json: made with data\.image_size 9, params\.yaml has 8; run"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(project, spoil, message):
    spoil()
    refused(message)


@pytest.fixture
def before_each_open() -> Iterator[Callable]:
    """Call a function whenever this process is about to open the file of this name."""
    watched: dict[str, Callable[[], object]] = {}

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            watched.get(os.fspath(arguments[0]), bool)()

    sys.addaudithook(hook)  # for good
    yield watched.__setitem__
    watched.clear()


@pytest.mark.parametrize("seen", ["ABA", "ABB"])
def test_a_model_swapped_meanwhile_is_not_credited_with_the_figures_of_the_other(project, before_each_open, seen):
    """Each time that the file is opened, it is the next of these; what is used must be what was hashed."""
    path, opened = Path("models/one.safetensors"), iter(seen)
    models = {"A": path.read_bytes()}
    write_model("one", 77)
    models["B"] = path.read_bytes()

    def swap() -> None:
        Path("next").write_bytes(models[next(opened, seen[-1])])
        Path("next").replace(path)

    before_each_open(str(path), swap)
    refused(rf"changed while this stage ran: {path}\. Nothing was written")


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
