"""The loops whose speed is compared: two as people write them, and the core's."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from stages.core.dataset import Split, channel_statistics
from stages.core.device import choose_backend
from stages.core.images import Normalise, TrainingImages, draw_epoch
from stages.core.models import build_model
from stages.core.training import Step
from stages.params import load_params
from stages.train import read_recipe

PARAMS = load_params()
RECIPE = read_recipe(PARAMS, Namespace(epochs=PARAMS.resnet.epochs, weight_decay=PARAMS.train.weight_decay))

Epoch = Callable[[int], None]  # trains the given epoch and waits until that is done


class PilImages(Dataset):
    """Images as torchvision's CIFAR10 hands them out: one at a time, through PIL."""

    def __init__(self, split: Split, transform):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def new_model(name: str, device: torch.device) -> nn.Module:
    return build_model(name, classes=10, base_channels=64, blocks=[2, 2, 2, 2], seed=42).to(device).train()


def plain_model(name: str, device: torch.device) -> nn.Module:
    """The model as it is usually written, with ReLU before pooling: the same values and gradients."""
    model = new_model(name, device)
    if name == "simple_cnn":
        for i in (2, 6, 10):
            model.features[i], model.features[i + 1] = nn.ReLU(), model.features[i]
    return model


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), RECIPE.learning_rate, RECIPE.momentum, weight_decay=RECIPE.weight_decay)


def notebook_loop(name: str, split: Split, device: torch.device) -> Epoch:
    """PIL transforms in two workers, default memory format and precision, sums that wait for the device each step."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(split.images.shape[1], padding=RECIPE.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*channel_statistics(split.images)),
        ]
    )
    loader = DataLoader(PilImages(split, transform), RECIPE.batch_size, shuffle=True, num_workers=2)
    model = plain_model(name, device)
    optimizer = sgd(model)

    def epoch(number: int) -> None:
        loss_sum, right = 0.0, 0
        for x, labels in loader:
            x, labels = x.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            right += (logits.argmax(1) == labels).sum().item()

    return epoch


def hand_written_loop(name: str, split: Split, device: torch.device) -> Epoch:
    """The usual advice taken: data on the device, augmented an epoch at a time, channels_last, autocast and
    cudnn.benchmark."""
    torch.backends.cudnn.benchmark = True
    padding, size = RECIPE.crop_padding, split.images.shape[1]
    images = Normalise(*channel_statistics(split.images), device)(torch.from_numpy(split.images).to(device))
    labels = torch.from_numpy(split.labels).to(device)
    padded = F.pad(images, [padding] * 4)
    model = plain_model(name, device).to(memory_format=torch.channels_last)
    optimizer = sgd(model)

    def crop_and_flip(batch: torch.Tensor) -> torch.Tensor:
        tops = torch.randint(0, 2 * padding + 1, (len(batch),), device=device)
        lefts = torch.randint(0, 2 * padding + 1, (len(batch),), device=device)
        out = torch.empty((len(batch), 3, size, size), device=device)
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                chosen = (tops == top) & (lefts == left)
                out[chosen] = batch[chosen, :, top : top + size, left : left + size]
        mirrored = torch.rand(len(batch), device=device) < 0.5
        return torch.where(mirrored[:, None, None, None], out.flip(3), out)

    def epoch(number: int) -> None:
        augmented = torch.cat([crop_and_flip(chunk) for chunk in padded.split(5000)])
        loss_sum = torch.zeros((), device=device)
        for index in torch.randperm(len(labels), device=device).split(RECIPE.batch_size):
            x = augmented[index].contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(model(x), labels[index])
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(index)
        loss_sum.item()

    return epoch


def core(compile: bool, name: str, split: Split, device: torch.device) -> Epoch:
    """The project's own step."""
    backend = choose_backend(PARAMS.train.precision, compile, flops=0)
    normalise = Normalise(*channel_statistics(split.images), device)
    images = TrainingImages(split, RECIPE.crop_padding, normalise, device)
    step = Step(backend.place(new_model(name, device)), images, RECIPE, backend)

    def epoch(number: int) -> None:
        step.sums.zero_()
        draws = draw_epoch(RECIPE.seed, number, len(images), RECIPE.crop_padding, RECIPE.flip)
        for batch in backend.to_device(draws).split(RECIPE.batch_size):
            step.update(batch)
        step.sums.tolist()

    return epoch


VARIANTS = {
    "notebook's loop": notebook_loop,
    "by hand": hand_written_loop,
    "core, eager": partial(core, False),
    "core, compiled": partial(core, True),
}
