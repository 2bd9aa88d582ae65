"""One training step: the forward pass of a batch, its loss, the backward pass, the update, and the running sums."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd

from stages.common.params import Train
from stages.training.augmentation import TrainingImages

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


class Step:
    """Stochastic gradient descent with momentum, a batch a call.

    Everything that changes from step to step, the learning rate too, is a tensor on the device that stays where it is,
    and nothing waits for the device. So a call can be captured as a CUDA graph and replayed.

    Args:
        model: on the device; DistributedDataParallel where several processes train.
        images: the training images, from which a batch is gathered.
        train: momentum, weight decay (on every parameter) and the first learning rate.
        autocast: the precision of the forward pass.

    Attributes:
        learning_rate: float32 scalar, to be filled in before an epoch.
        sums: float64 [2], the loss and the correct predictions summed over the images since it was last zeroed.
    """

    def __init__(
        self,
        model: nn.Module,
        images: TrainingImages,
        train: Train,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.model, self.images, self.train, self.autocast = model, images, train, autocast
        device = images.labels.device
        self.learning_rate = torch.tensor(train.learning_rate, device=device)
        self.parameters: list[Tensor] = list(model.parameters())
        self.momentum = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def __call__(self, draws: Tensor, weight: float = 1.0, forward: Forward | None = None) -> None:
        """Train on the B images that rows of `draw_epoch` describe, int64 B×4.

        Args:
            weight: the share of this batch in the mean loss over all processes; 0 leaves it out.
            forward: a compiled `self.forward`.
        """
        loss, correct = (forward or self.forward)(draws)
        (loss if weight == 1 else loss * weight).backward()
        self.update()
        if weight:
            self.sums += torch.stack([loss.detach().double() * len(draws), correct.double()])

    @torch.no_grad()
    def update(self) -> None:
        """Update the parameters and drop the gradients.

        With the function behind torch.optim.SGD: the class would import the compiler first, for more than a second.
        """
        sgd(
            self.parameters,
            [parameter.grad for parameter in self.parameters if parameter.grad is not None],
            [*self.momentum],
            fused=True,
            lr=self.learning_rate,
            momentum=self.train.momentum,
            weight_decay=self.train.weight_decay,
            dampening=0,
            nesterov=False,
            maximize=False,
        )
        for parameter in self.parameters:
            parameter.grad = None

    def forward(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (float32) and number of correct predictions (int64) of the batch."""
        x, labels = self.images.batch(draws)  # B×3×H×W, B
        with self.autocast():
            logits = self.model(x)  # B×classes
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 is too coarse for a loss
        return F.cross_entropy(exact, labels), (logits.argmax(1) == labels).sum()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that persist between steps (no copies): `model.*` and `momentum.*`, named as in the model."""
        model = getattr(self.model, "module", self.model)  # inside DistributedDataParallel
        names = (name for name, _ in model.named_parameters())
        momentum = {f"momentum.{name}": tensor for name, tensor in zip(names, self.momentum, strict=True)}
        return {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | momentum
