"""The two image classifiers that the experiment compares."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODELS = ("simple_cnn", "resnet18")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around which the input takes a shortcut (He et al. 2015, figure 2).

    The shortcut is the identity, or a strided 1×1 convolution where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)  # B×out×H/stride×W/stride
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet for small images: a 3×3 stem without pooling, then groups of blocks, each twice as wide and half as large.

    `blocks=[2, 2, 2, 2]` at 64 channels is ResNet-18: 11,173,962 parameters for 10 classes. Convolutions start from
    Kaiming's normal distribution over the fan-out, the classifier from a normal one of standard deviation 0.01.
    """

    def __init__(self, classes: int, base_channels: int, blocks: list[int]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        groups, channels = [], base_channels
        for group, count in enumerate(blocks):
            width = base_channels * 2**group
            for block in range(count):
                stride = 2 if group > 0 and block == 0 else 1
                groups.append(BasicBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*groups)
        self.fc = nn.Linear(channels, classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # B×3×32×32 → B×64×32×32
        x = self.blocks(x)  # → B×512×4×4
        return self.fc(_average(x))  # → B×512 → B×classes


class SimpleCNN(nn.Module):
    """Four convolutions, the first three followed by pooling: 391,946 parameters for 10 classes."""

    def __init__(self, classes: int):
        super().__init__()
        self.features = nn.Sequential(
            *self._layer(3, 32, nn.MaxPool2d(2)),
            *self._layer(32, 64, nn.MaxPool2d(2)),
            *self._layer(64, 128, nn.MaxPool2d(2)),
            *self._layer(128, 256),
        )
        self.fc = nn.Linear(256, classes)

    @staticmethod
    def _layer(in_channels: int, out_channels: int, *pooling: nn.Module) -> tuple[nn.Module, ...]:
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        # ReLU after pooling gives the values and gradients of ReLU before it, from a quarter of the elements.
        return convolution, nn.BatchNorm2d(out_channels), *pooling, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # B×3×32×32 → B×256×4×4
        return self.fc(_average(x))  # → B×256 → B×classes


def _average(x: Tensor) -> Tensor:
    """The mean over the pixels, B×C×H×W → B×C.

    `AdaptiveAvgPool2d(1)` does the same, but its gradient is not deterministic on CUDA, and not in channels_last.
    """
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)


def build_model(name: str, classes: int, base_channels: int, blocks: list[int], seed: int) -> nn.Module:
    """A freshly initialised model on the CPU, the same for the same arguments on any machine.

    The width and depth concern `resnet18` alone. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**64)
        return SimpleCNN(classes) if name == "simple_cnn" else ResNet(classes, base_channels, blocks)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
