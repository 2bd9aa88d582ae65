"""The two image classifiers that the experiment compares: SimpleCNN and ResNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.common.params import Cnn, Resnet


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
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)  # B×in×H×W → B×out×H/stride×W/stride
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet for small images: a 3×3 stem without pooling, then four layers, each twice as wide and half as large.

    `blocks=[2, 2, 2, 2]` at 64 channels is ResNet-18: 11,173,962 parameters for 10 classes. Convolutions start from
    Kaiming's normal distribution over the fan-out, the classifier from a normal one of standard deviation 0.01.
    """

    def __init__(self, classes: int, base_channels: int, blocks: list[int]):
        super().__init__()
        c1, c2, c3, c4 = (base_channels * 2**i for i in range(4))
        self.conv1 = nn.Conv2d(3, c1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.layer1 = _layer(c1, c1, blocks[0], stride=1)
        self.layer2 = _layer(c1, c2, blocks[1], stride=2)
        self.layer3 = _layer(c2, c3, blocks[2], stride=2)
        self.layer4 = _layer(c3, c4, blocks[3], stride=2)
        self.fc = nn.Linear(c4, classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:  # shapes of the default: 64 channels, 32×32 pixels
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # B×3×32×32 → B×64×32×32
        x = self.layer1(x)  # B×64×32×32
        x = self.layer2(x)  # B×128×16×16
        x = self.layer3(x)  # B×256×8×8
        x = self.layer4(x)  # B×512×4×4
        x = _average(x)  # B×512
        return self.fc(x)  # B×classes


def _layer(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Residual blocks of one width, the first of which halves the image where `stride` is 2."""
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class SimpleCNN(nn.Module):
    """Four convolutions, the first three followed by pooling: 391,946 parameters for 10 classes."""

    def __init__(self, classes: int):
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 32, nn.MaxPool2d(2)),
            *_convolution(32, 64, nn.MaxPool2d(2)),
            *_convolution(64, 128, nn.MaxPool2d(2)),
            *_convolution(128, 256),
        )
        self.fc = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # B×3×32×32 → B×256×4×4
        x = _average(x)  # B×256
        return self.fc(x)  # B×classes


def _convolution(in_channels: int, out_channels: int, *pooling: nn.Module) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    # ReLU after pooling gives the values and gradients of ReLU before it, from a quarter of the elements.
    return convolution, nn.BatchNorm2d(out_channels), *pooling, nn.ReLU(inplace=True)


def _average(x: Tensor) -> Tensor:
    """The mean over the pixels, B×C×H×W → B×C: global average pooling.

    `AdaptiveAvgPool2d(1)` does the same by `mean`, whose gradient is not in channels_last: what comes before it in the
    backward pass would be slower.
    """
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)


def build_model(settings: Cnn | Resnet, classes: int, seed: int) -> nn.Module:
    """A freshly initialised model, the same for the same arguments on any machine.

    The CPU's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**64)
        if isinstance(settings, Cnn):
            return SimpleCNN(classes)
        return ResNet(classes, settings.base_channels, settings.blocks)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
