import pytest

from benchmarks.floor import training_cost
from stages.models.resnet import Settings, build


def test_cost_of_resnet18_is_that_of_its_layers():
    model = build(Settings(epochs=1, base_channels=64, blocks=[2, 2, 2, 2]), classes=10)
    # Multiplications of a forward pass: the stem, four, three and three convolutions of 3×3 at equal width, the strided
    # ones of 3×3 and 1×1, and the classifier. At half the size and twice the width a convolution costs the same.
    equal = 32 * 32 * 64 * 64 * 9
    stem, strided, shortcuts = 32 * 32 * 64 * 3 * 9, 3 * equal / 2, 3 * equal / 18
    expected = stem + (4 + 3 + 3 + 3) * equal + strided + shortcuts + 512 * 10
    assert training_cost(model, size=32)[0] == pytest.approx(3 * 2 * expected)
