"""Test every trained model in fp32 on the whole test set.

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
from stages.core.weights import Card, load_model
from stages.files import write_csv, write_json

DATA, MODELS = Path("data"), Path("models")


def main(args: Namespace) -> None:
    info = read_info(DATA)
    test = read_split(DATA, "test", info)
    paths = sorted(MODELS.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{MODELS}/: no trained model in it; train them with `dvc repro`")

    summaries, predictions, by_class, bins = {}, {}, {}, {}
    for path in paths:
        card, probabilities = test_probabilities(path, test, info.classes)
        predicted, confidence = probabilities.argmax(1), probabilities.max(1)
        summaries[card.run] = {"model": card.title, **quality.summary(test.labels, probabilities)}
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
        print(f"{card.run}: {summaries[card.run]['accuracy']:.2%} of {len(test.labels):,} test images are right")

    write_json(Path("metrics/evaluation.json"), summaries)
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


if __name__ == "__main__":
    cli.run(main, ArgumentParser(prog="evaluate", description=__doc__.partition("\n")[0]))
