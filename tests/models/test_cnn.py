import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.cnn import Settings, build

SETTINGS = Settings(epochs=1)


def written_out(x: Tensor, weights: dict[str, Tensor], statistics: dict[str, Tensor], training: bool) -> Tensor:
    """SimpleCNN as the notebook has it: convolution, normalisation, ReLU, and pooling after the first three."""
    for place, pooled in ((0, True), (4, True), (8, True), (12, False)):
        x = F.conv2d(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1)
        name = f"features.{place + 1}"
        mean, variance = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
        x = F.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], training, 0.1, 1e-5)
        x = F.max_pool2d(F.relu(x), 2, 2) if pooled else F.relu(x)
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize(("size", "training"), [(32, True), (9, False)])
def test_outputs_gradients_and_statistics_are_those_of_the_network_written_out(size, training):
    torch.manual_seed(0)
    network = build(SETTINGS, 7).double().train(training)
    for tensor in network.state_dict().values():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    x = torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = network(x), written_out(x, weights, statistics, training)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    for logits in (ours, theirs):
        F.cross_entropy(logits, torch.tensor([0, 3, 6, 1])).backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, weights[name].grad, rtol=0, atol=1e-9)
    for name, buffer in network.named_buffers():
        if "num_batches" not in name:
            torch.testing.assert_close(buffer, statistics[name], rtol=0, atol=1e-9)


def test_it_starts_from_torchs_distributions():
    """Uniform within one over the root of the fan-in (LeCun et al. 1998), normalisation by 1 and 0."""
    torch.manual_seed(0)
    for module in build(SETTINGS, 200).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for values in (module.weight, module.bias):
                assert kstest(values.detach().flatten().numpy(), "uniform", (-bound, 2 * bound)).pvalue > 1e-4
        elif isinstance(module, nn.BatchNorm2d):
            assert not torch.cat([module.weight - 1, module.bias]).any()
