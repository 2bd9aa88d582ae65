"""A model of one's own for tests of processes: quick, with dropout, of images of 8×8 pixels.

It waits before the training batch whose number is in the file `hold`, and then writes `held`: so a test disturbs a
training where it wants to, however fast the machine is.
"""

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.common.params import PositiveInt, Section


class Settings(Section):
    epochs: PositiveInt
    width: int = 32
    outputs: int = 2
    frozen: bool = False
    plain: bool = False
    apart: bool = False  # each rank has other weights

    @property
    def title(self) -> str:
        return "Mine"


class Hold(nn.Module):
    def __init__(self, apart: bool):
        super().__init__()
        self.calls = 0
        if apart:
            self.register_buffer("rank", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        for buffer in self.buffers():
            buffer.fill_(int(os.environ["RANK"]))
        while self.training and wanted() == str(self.calls):
            Path("held").write_text(str(self.calls))
            time.sleep(0.001)
        return x


def wanted() -> str:
    try:
        return Path("hold").read_text()
    except FileNotFoundError:
        return ""


def build(settings: Settings, classes: int) -> nn.Module:
    between = [] if settings.plain else [nn.BatchNorm1d(settings.width), nn.Dropout(0.5)]
    first, last = nn.Linear(192, settings.width), nn.Linear(settings.width, settings.outputs)
    first.requires_grad_(not settings.frozen)
    return nn.Sequential(Hold(settings.apart), nn.Flatten(), first, nn.ReLU(), *between, last)
