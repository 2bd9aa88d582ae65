"""Measurements of the evaluation of ResNet-18 after each epoch."""

import copy
import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.gpu.meter import milliseconds
from benchmarks.gpu.session import Session, Training
from stages.training.loop import predict

REPLAYS = 20


def folded(model: nn.Module) -> nn.Module:
    """A copy for evaluation in which each batch normalisation is part of the convolution before it."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


def evaluation(session: Session) -> None:
    """(e) All test images: as the product does it, compiled, and with batch normalisation in the weights."""
    training, compiling = Training(), Training(session.meter.compiles).backend
    for _ in range(session.size(50, 2)):  # so that statistics and weights are those of a training
        training.update(training.batch)
    images = torch.from_numpy(training.dataset.test.images).to(training.backend.device)
    model = training.model
    variants: dict[str, nn.Module | Callable] = {
        "product": model,
        "compiled": compiling.compiled(model),
        "batch norm folded": folded(model),
        "folded and compiled": compiling.compiled(folded(model)),
    }
    expected: Tensor | None = None
    for name, variant in variants.items():
        run = training.backend.replayed(
            lambda images, variant=variant: predict(variant, images, training.normalise, training.backend), state=[]
        )
        times = milliseconds(session.meter, run, images, session.size(REPLAYS, 2))
        logits = run(images).clone()
        expected = logits if expected is None else expected
        session.page.row(
            {
                "evaluation": name,
                f"ms for {len(images):,} images, median": statistics.median(times),
                "largest difference of a logit": (logits - expected).abs().max().item(),
                "other predictions": (logits.argmax(1) != expected.argmax(1)).sum().item(),
            }
        )
