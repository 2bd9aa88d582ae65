"""ResNet for small images (He et al. 2015, *Deep residual learning for image recognition*)."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stages.common.params import PositiveInt, Section


class Settings(Section):
    """The section `resnet` of params.yaml."""

    epochs: PositiveInt
    # Under 16 input channels, oneDNN's weight gradient of a strided 1×1 convolution in channels_last corrupts memory
    # when the batch is odd (torch 2.14.1 on AVX-512).
    base_channels: Annotated[int, Field(ge=16, le=1024)]
    blocks: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=4, max_length=4)]

    @property
    def title(self) -> str:
        """The name of the network, and its width where that is not the original's: ResNet-18, 16 channels."""
        depth = 2 + 2 * sum(self.blocks)  # stem and classifier, and two convolutions a block
        return f"ResNet-{depth}" + (f", {self.base_channels} channels" if self.base_channels != 64 else "")


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
        """Return float B×out×H/stride×W/stride for float B×in×H×W."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)  # B×in×H×W → B×out×H/stride×W/stride
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A 3×3 stem without pooling, then four layers, each twice as wide and half as large as the one before.

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

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, float B×classes, of normalised images, float B×3×H×W."""
        # Shapes of the default: 64 channels, 32×32 pixels
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # B×3×32×32 → B×64×32×32
        x = self.layer1(x)  # B×64×32×32
        x = self.layer2(x)  # B×128×16×16
        x = self.layer3(x)  # B×256×8×8
        x = self.layer4(x)  # B×512×4×4
        # Global average pooling, by the operation whose gradient is in channels_last (see cnn.py)
        x = F.avg_pool2d(x, x.shape[2:]).flatten(1)  # B×512
        return self.fc(x)  # B×classes


def _layer(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Residual blocks of one width, the first of which halves the image where `stride` is 2."""
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def build(settings: Settings, classes: int) -> nn.Module:
    """Return a freshly initialised network: float B×3×H×W → B×classes."""
    return ResNet(classes, settings.base_channels, settings.blocks)
