"""What a person sees of a training: a line an epoch, and on a terminal a bar below them."""

import sys
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from stages.training.checkpoint import State
from stages.training.device import Device
from stages.training.recipe import Recipe


class Progress:
    """Print how far a training is.

    Args:
        images: number of training images.
        finished: number of epochs that an earlier process trained.
        device: of a GPU, the memory is shown.
    """

    def __init__(self, recipe: Recipe, images: int, finished: int, device: Device):
        self.recipe, self.images, self.on_gpu = recipe, images, device.torch.type == "cuda"
        self.began = time.perf_counter()  # this epoch
        total, done = recipe.epochs * images, finished * images
        # `disable=None`: no bar where there is no terminal
        self.bar = tqdm(total=total, initial=done, desc=recipe.run, unit=" images", unit_scale=True, disable=None)

    def batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the batches of an epoch. A GPU gets them long before it trains on them, so there the bar waits."""
        for batch in batches:
            yield batch
            if not self.on_gpu:
                self.bar.update(len(batch))

    def epoch(self, state: State) -> None:
        """Print a line about the last epoch."""
        last, epochs, held_out = state.history[-1], self.recipe.epochs, state.held_out
        line = (
            f"{self.recipe.run} {last['epoch']:>{len(str(epochs))}}/{epochs}  loss {last['train_loss']:.4f}  "
            f"train {last['train_accuracy']:.2%}  {held_out} {last[f'{held_out}_accuracy']:.2%}  "
            f"lr {last['learning_rate']:.2g}"
        )
        if self.on_gpu:
            line += f"  {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB"
            self.bar.update(self.images)
        seconds = time.perf_counter() - self.began  # testing included; and in the first epoch, compiling
        self.began += seconds
        if self.bar.disable:
            left = tqdm.format_interval(seconds * (epochs - len(state.history)))
            line += f"  {self.images / seconds:,.0f} images/s  {left} left"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def finish(self, state: State) -> None:
        """Print a line about the whole run."""
        self.bar.close()
        took = f"{self.recipe.run}: {len(state.history)} epochs in {state.seconds:,.1f} s"
        best = f"{state.best[f'{state.held_out}_accuracy']:.2%} in epoch {state.best['epoch']}"
        print(f"{took}, best {state.held_out} accuracy {best}", flush=True)
