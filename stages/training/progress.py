"""The view of a training in progress: a line an epoch, on a terminal with a bar below them, in 80 columns."""

import sys
import time

import torch
from tqdm import tqdm

from stages.common.formats import Epoch
from stages.common.params import Recipe
from stages.training.device import Backend
from stages.training.state import State

SETTLED = 10  # seconds after which the speed so far tells how long the training takes
LONG = 3600  # seconds; a longer training on a CPU is announced early
BAR = "{l_bar}{bar}| {postfix[0]}{rate_noinv_fmt}, {remaining} left"


class Progress:
    """Prints how far a training is.

    Args:
        recipe: run and epochs.
        images: number of training images.
        finished: number of epochs that an earlier process trained.
        backend: on a GPU the memory is shown; on a CPU a long training is announced.
    """

    def __init__(self, recipe: Recipe, images: int, finished: int, backend: Backend):
        self.run, self.epochs, self.images = recipe.run, recipe.settings.epochs, images
        self.on_gpu = backend.device.type == "cuda"
        self.total = (self.epochs - finished) * images
        self.bar = tqdm(  # type: ignore[call-overload] # a list is meant for the postfix of a bar_format
            total=self.epochs * images,
            initial=finished * images,
            desc=self.run,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            bar_format=BAR,
            postfix=[""],
            disable=None,  # where there is no terminal
        )
        self.began: float | None = None  # end of the first batch, which includes start-up
        self.first = self.done = 0  # images of the first batch, and of all
        self.announced = self.on_gpu

    def batch(self, images: int) -> None:
        if self.began is None:
            self.began, self.first = time.perf_counter(), images
        self.done += images
        if self.on_gpu:  # a batch is handed over long before it is trained on; `epoch` comes when all are
            return
        self.bar.update(images)
        if not self.announced and time.perf_counter() - self.began > SETTLED:
            self.announced = True
            if self.left() > LONG:
                tqdm.write(
                    f"{self.run}: about {self.left() / 3600:.0f} h to go on this CPU; `make demo` takes minutes, and "
                    "fewer epochs or `-S resnet.base_channels=16` shorten it",
                    file=sys.stderr,
                )

    def epoch(self, epoch: Epoch) -> None:
        number = f"{epoch.epoch:>{len(str(self.epochs))}}/{self.epochs}"
        figures = (
            f"loss {epoch.train_loss:.4f}  train {epoch.train_accuracy:.2%}  test {epoch.test_accuracy:.2%}  "
            f"lr {epoch.learning_rate:.2g}"
        )
        line = f"{self.run} {number}  {figures}"
        if self.bar.disable:
            left = tqdm.format_interval(self.left())
            print(f"{line}  {self.speed():,.0f} images/s  {left} left{self._memory(', ')}", flush=True)
            return
        if self.on_gpu:
            self.bar.postfix[0] = self._memory("", ", ")
            self.bar.update(self.images)
        tqdm.write(line)

    def speed(self) -> float:
        """Images a second since the first batch, testing included."""
        seconds = time.perf_counter() - (self.began or 0)
        return (self.done - self.first) / seconds if seconds else 0

    def left(self) -> float:
        """Seconds to the end at the speed so far."""
        return (self.total - self.done) / self.speed() if self.speed() else 0

    def _memory(self, before: str, after: str = "") -> str:
        return f"{before}{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB{after}" if self.on_gpu else ""

    def finish(self, state: State) -> None:
        """One line about the whole run, as the notebook has it."""
        self.bar.close()
        print(
            f"{self.run}: {len(state.history)} epochs in {state.seconds:,.1f} s, best test accuracy "
            f"{state.best.test_accuracy:.2%} in epoch {state.best.epoch}",
            flush=True,
        )

    def close(self) -> None:
        self.bar.close()
