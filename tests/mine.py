"""A model of one's own for tests of processes: quick, with dropout, of images of 8×8 pixels.

It waits before the training batch whose number is in the file `hold`, and writes `held`; an empty `hold` lets it go on.
So a test disturbs a training where it wants to, however fast the machine is.
"""

import time
from pathlib import Path

from torch import Tensor, nn

from stages.common.params import PositiveInt, Section


class Settings(Section):
    epochs: PositiveInt

    @property
    def title(self) -> str:
        return "Mine"


class Hold(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        while self.training and Path("hold").exists() and Path("hold").read_text() == str(self.calls):
            Path("held").write_text(str(self.calls))
            time.sleep(0.001)
        return x


def build(settings: Settings, classes: int) -> nn.Module:
    network = [nn.Linear(192, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, classes)]
    return nn.Sequential(Hold(), nn.Flatten(), *network)
