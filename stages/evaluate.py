"""Test every trained model in fp32 on the whole test set, and compare the pairs that the experiment asks about.

python -m stages.evaluate
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages import cli
from stages.core import quality
from stages.core.dataset import Split, read_info, read_split
from stages.core.device import choose_backend
from stages.core.errors import UserError
from stages.core.images import Normalise
from stages.core.prediction import predict
from stages.core.significance import compare_on_images
from stages.core.weights import Card, load_model
from stages.files import write_csv, write_json
from stages.wording import scientific, verdict

DATA, MODELS = Path("data"), Path("models")
# The experiment's questions: is the first run's model better than the second's, and what sets the two apart?
QUESTIONS = [("resnet", "cnn", "model"), ("resnet", "resnet_ablation", "weight decay")]


def main(args: Namespace) -> None:
    info = read_info(DATA)
    test = read_split(DATA, "test", info)
    paths = sorted(MODELS.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{MODELS}/: no trained model in it; train them with `dvc repro`")

    cards, evaluation, predictions, by_class, bins = {}, {}, {}, {}, {}
    for path in paths:
        card, probabilities = test_probabilities(path, test, info.classes)
        predicted, confidence = probabilities.argmax(1), probabilities.max(1)
        cards[card.run] = card
        evaluation[card.run] = {
            "model": card.title,
            "seed": card.recipe["seed"],
            **quality.summary(test.labels, probabilities),
        }
        predictions[card.run] = pd.DataFrame(
            {
                "index": range(len(test.labels)),
                "actual": [info.classes[label] for label in test.labels],
                "predicted": [info.classes[label] for label in predicted],
                "confidence": confidence,
            }
        )
        by_class[card.run] = quality.per_class(test.labels, predicted, info.classes)
        bins[card.run] = quality.calibration(predicted == test.labels, confidence)
        print(f"{card.run}: {evaluation[card.run]['accuracy']:.2%} of {len(test.labels):,} test images are right")

    correct = {run: (table.actual == table.predicted).to_numpy() for run, table in predictions.items()}
    evaluation["comparisons"] = [
        compare(cards[first], cards[second], question, correct[first], correct[second])
        for first, second, question in QUESTIONS
        if {first, second} <= cards.keys()
    ]
    write_json(Path("metrics/evaluation.json"), evaluation)
    for run, table in predictions.items():
        write_csv(Path(f"plots/predictions/{run}.csv"), table)
    write_csv(Path("plots/per_class.csv"), pd.concat(by_class, names=["run"]).reset_index("run"))
    write_csv(Path("plots/calibration.csv"), pd.concat(bins, names=["run"]).reset_index("run"))


def test_probabilities(path: Path, test: Split, classes: list[str]) -> tuple[Card, np.ndarray]:
    """The model's card and its probabilities for each test image, float64 N×classes."""
    card, model = load_model(path)
    if card.run != path.stem:
        raise UserError(f"{path}: the model of run {card.run}; train this one with `dvc repro`")
    if card.classes != classes or card.image_size != test.images.shape[1]:
        raise UserError(f"{path}: trained on other classes or sizes than data/ holds; train it with `dvc repro`")
    backend = choose_backend("fp32", compile=False, flops=0)
    normalise = Normalise(card.mean, card.std, backend.device)
    logits = predict(backend.place(model), torch.from_numpy(test.images).to(backend.device), normalise, backend)
    return card, logits.double().softmax(1).cpu().numpy()


def compare(first: Card, second: Card, question: str, first_right: np.ndarray, second_right: np.ndarray) -> dict:
    """What metrics/evaluation.json says of a pair of runs; metrics/README.md explains the keys."""
    comparison = compare_on_images(first_right, second_right)
    if question == "model":
        subject, names = "", (first.title, second.title)
    else:
        subject, names = question, tuple(scientific(card.recipe["weight_decay"]) for card in (first, second))
    return {
        "runs": [first.run, second.run],
        "subject": subject,
        "names": names,
        "difference": round(comparison.difference, 6),
        "interval": [round(limit, 6) for limit in comparison.interval],
        "p": float(f"{comparison.p:.3g}"),
        "only_right": [int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())],
        "verdict": verdict(subject, names, comparison, f"{first_right.size:,} test images"),
    }


if __name__ == "__main__":
    cli.run(main, ArgumentParser(prog="evaluate", description=__doc__.partition("\n")[0]))
