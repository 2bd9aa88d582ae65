"""What each process of tests/core/test_processes.py does: train a small model and say what came out of it.

python tests/core/train_together.py FOLDER simple_cnn|plain IMAGES BATCH [--compile]
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stages.core.dataset import Split
from stages.core.device import choose_backend
from stages.core.models import build_model
from stages.core.processes import join_processes, leave_processes
from stages.core.training import Recipe, train


def plain_model() -> nn.Module:
    """A model without batch normalisation, to which it is all one how a batch is shared."""
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 4)
    return nn.Sequential(*layers)


def main(folder: str, name: str, images: str, batch: str, *options: str) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, int(images))
    pixels = random.integers(0, 100, (int(images), 12, 12, 3)) + 50 * labels[:, None, None, None]
    data = Split(pixels.astype(np.uint8), labels)
    processes = join_processes()
    backend = choose_backend("fp32", bool(options), 0, processes)
    model = plain_model() if name == "plain" else build_model("simple_cnn", 4, 16, [1], seed=1)
    recipe = Recipe(1, 3, int(batch), 0.02, 0.9, 5e-4, "cosine", 2, True, "last")
    seen = []
    trained = train(model, data, data, ([0.5] * 3, [0.3] * 3), recipe, backend, on_batch=seen.append)
    torch.save(trained.weights, Path(folder, f"weights{processes.rank}.pt"))
    history = [dataclasses.asdict(epoch) for epoch in trained.history]
    Path(folder, f"{processes.rank}.json").write_text(json.dumps({"history": history, "batches": seen}))
    leave_processes()


if __name__ == "__main__":
    main(*sys.argv[1:])
