"""A process of tests/training/test_distributed.py: trains a small model and writes what came out of it.

python tests/training/train_together.py FOLDER cnn|plain IMAGES BATCH [--compile]
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from stages.training.device import choose_backend
from stages.training.distributed import joined_processes
from stages.training.loop import train
from stages.training.state import Observer
from tests.training.toys import dataset, model, recipe


def plain_model() -> nn.Module:
    """A model without batch normalisation, for which it makes no difference how a batch is sharded."""
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 4)
    return nn.Sequential(*layers)


class Batches(Observer):
    def __init__(self):
        self.sizes = []

    def on_batch(self, images: int) -> None:
        self.sizes.append(images)


def main(folder: str, name: str, images: str, batch: str, *options: str) -> None:
    data = dataset(train=int(images), test=60, size=12, classes=4)
    of = recipe("cnn", epochs=3, batch_size=int(batch), keep="last", compile=bool(options))
    with joined_processes() as processes:
        backend = choose_backend(of.train, 0, processes)
        seen = Batches()
        network = plain_model() if name == "plain" else model(of, classes=4)
        trained = train(network, data, of, backend, observer=seen)
        torch.save(trained.weights, Path(folder, f"weights{processes.rank}.pt"))
        history = [epoch.model_dump() for epoch in trained.history]
        Path(folder, f"{processes.rank}.json").write_text(json.dumps({"history": history, "batches": seen.sizes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
