"""One training step: the forward pass of a batch, its loss, the backward pass, the update, and the running sums."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd

from stages.common.params import Train
from stages.training.augmentation import Draws, TrainingImages

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


class Step:
    """Stochastic gradient descent with momentum, a batch a call.

    Everything that changes from step to step, the learning rate too, is a tensor on the device that stays where it is,
    and nothing waits for the device. So a call can be captured as a CUDA graph and replayed.

    Args:
        model: on the device; DistributedDataParallel where several processes train.
        images: the training images, from which a batch is gathered.
        train: momentum, weight decay (on every parameter that is trained), label smoothing and the first learning rate.
        autocast: the precision of the forward pass.

    Attributes:
        learning_rate: float32 scalar, to be filled in before an epoch.
        sums: float64 [2], the loss and the correct predictions summed over the images since it was last zeroed.
        momentum: by name, for each parameter that is not frozen, a tensor of its shape.
    """

    def __init__(
        self, model: nn.Module, images: TrainingImages, train: Train, autocast: Callable[[], AbstractContextManager]
    ):
        self.model, self.images, self.train, self.autocast = model, images, train, autocast
        self.bare = getattr(model, "module", model)  # inside DistributedDataParallel
        device = images.labels.device
        self.learning_rate = torch.tensor(train.learning_rate, device=device)
        self.parameters = {name: p for name, p in self.bare.named_parameters() if p.requires_grad}
        self.momentum = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def __call__(self, rows: Tensor, weight: float = 1.0, forward: Forward | None = None) -> None:
        """Train on the B images that the draws in `rows` describe, int64 B×6: the fields of `Draws` side by side.

        Args:
            weight: the share of this batch in the mean loss over all processes; 0 leaves it out.
            forward: a compiled `self.forward`.
        """
        loss, correct = (forward or self.forward)(rows)
        (loss if weight == 1 else loss * weight).backward()
        self.update()
        if weight:
            self.sums += torch.stack([loss.detach().double() * len(rows), correct.double()])

    @torch.no_grad()
    def update(self) -> None:
        """Update the parameters that have a gradient, and drop the gradients.

        With the function behind torch.optim.SGD: the class would import the compiler first, for more than a second.
        """
        used = {name: p for name, p in self.parameters.items() if p.grad is not None}
        sgd(
            [*used.values()],
            [p.grad for p in used.values() if p.grad is not None],
            [self.momentum[name] for name in used],
            fused=True,
            lr=self.learning_rate,  # a tensor on the device, which the fused kernels read
            momentum=self.train.momentum,
            weight_decay=self.train.weight_decay,
            dampening=0,
            nesterov=self.train.nesterov,
            maximize=False,
        )
        for parameter in used.values():
            parameter.grad = None

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy (float32) and the number of correct predictions (int64) of a batch."""
        x, labels = self.images.batch(Draws(*rows.unbind(1)))  # B×3×H×W, B
        with self.autocast():
            logits = self.model(x)  # B×classes
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 is too coarse for a loss
        loss = F.cross_entropy(exact, labels, label_smoothing=self.train.label_smoothing)
        return loss, (logits.argmax(1) == labels).sum()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that persist between steps, without copies: `model.*` and `momentum.*`."""
        model = {f"model.{name}": tensor for name, tensor in self.bare.state_dict().items()}
        return model | {f"momentum.{name}": tensor for name, tensor in self.momentum.items()}
