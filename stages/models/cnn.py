"""SimpleCNN: the plain network that ResNet is compared with."""

from torch import Tensor, nn
from torch.nn import functional as F

from stages.common.params import PositiveInt, Section


class Settings(Section):
    """The section `cnn` of params.yaml."""

    epochs: PositiveInt

    @property
    def title(self) -> str:
        return "Simple CNN"


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
        """Return the logits, float B×classes, of normalised images, float B×3×H×W."""
        x = self.features(x)  # B×3×32×32 → B×256×4×4
        # Global average pooling. `AdaptiveAvgPool2d(1)` does the same by `mean`, whose gradient is not in
        # channels_last: what comes before it in the backward pass would be slower.
        x = F.avg_pool2d(x, x.shape[2:]).flatten(1)  # B×256
        return self.fc(x)  # B×classes


def _convolution(in_channels: int, out_channels: int, *pooling: nn.Module) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    # ReLU after pooling gives the values and gradients of ReLU before it, from a quarter of the elements
    return convolution, nn.BatchNorm2d(out_channels), *pooling, nn.ReLU(inplace=True)


def build(settings: Settings, classes: int) -> nn.Module:
    """Return a freshly initialised network: float B×3×H×W → B×classes."""
    return SimpleCNN(classes)
