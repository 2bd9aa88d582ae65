"""The loops whose speed is compared: two as people write them, and the core's."""

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from stages.common.dataset import DatasetInfo, Split
from stages.common.params import load_params
from stages.training.augmentation import Normalise, TrainingImages, draw_epoch
from stages.training.device import choose_backend
from stages.training.loop import batches, build_update, train_epoch
from stages.training.models import build_model
from stages.training.step import Step

PARAMS = load_params()
RECIPES = {model: PARAMS.recipe(model, model, "train.weight_decay") for model in ("cnn", "resnet")}
TRAIN, AUGMENT = PARAMS.train, PARAMS.augment

Epoch = Callable[[int], None]  # trains the given epoch and waits until that is done


class PilImages(Dataset):
    """Images as torchvision's CIFAR10 hands them out: one at a time, through PIL."""

    def __init__(self, split: Split, transform):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def new_model(name: str, info: DatasetInfo) -> nn.Module:
    return build_model(RECIPES[name].settings, len(info.classes), PARAMS.seed).train()


def plain_model(name: str, info: DatasetInfo, device: torch.device) -> nn.Module:
    """The model as it is usually written, with ReLU before pooling: the same values and gradients."""
    model = new_model(name, info).to(device)
    if name == "cnn":
        for i in (2, 6, 10):
            model.features[i], model.features[i + 1] = nn.ReLU(), model.features[i]
    return model


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), TRAIN.learning_rate, TRAIN.momentum, weight_decay=TRAIN.weight_decay)


def notebook_loop(name: str, info: DatasetInfo, split: Split, device: torch.device) -> Epoch:
    """PIL transforms in two workers, default memory format and precision, sums that wait for the device each step."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(split.images.shape[1], padding=AUGMENT.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(info.mean, info.std),
        ]
    )
    loader = DataLoader(PilImages(split, transform), TRAIN.batch_size, shuffle=True, num_workers=2)
    model = plain_model(name, info, device)
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


def hand_written_loop(name: str, info: DatasetInfo, split: Split, device: torch.device) -> Epoch:
    """The usual advice taken: data on the device, augmented an epoch at a time, channels_last, autocast and
    cudnn.benchmark."""
    torch.backends.cudnn.benchmark = True
    padding, size = AUGMENT.crop_padding, split.images.shape[1]
    images = Normalise(info.mean, info.std, device)(torch.from_numpy(split.images).to(device))
    labels = torch.from_numpy(split.labels).to(device)
    padded = F.pad(images, [padding] * 4)
    model = plain_model(name, info, device).to(memory_format=torch.channels_last)
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
        for index in torch.randperm(len(labels), device=device).split(TRAIN.batch_size):
            x = augmented[index].contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(model(x), labels[index])
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(index)
        loss_sum.item()

    return epoch


def core(compile: bool, name: str, info: DatasetInfo, split: Split, device: torch.device) -> Epoch:
    """The project's own epoch, the step recorded as a CUDA graph where there is a GPU."""
    recipe = RECIPES[name]
    backend = choose_backend(recipe.train.model_copy(update={"compile": compile}), images=0)
    model = backend.place(new_model(name, info))
    images = TrainingImages(split, AUGMENT.crop_padding, Normalise(info.mean, info.std, device), device)
    step = Step(model, images, recipe.train, backend.autocast)
    update = build_update(step, recipe.train.batch_size, backend)

    def epoch(number: int) -> None:
        draws = draw_epoch(recipe.seed, number, len(images), AUGMENT.crop_padding, AUGMENT.flip)
        parts = batches(backend.to_device(draws), recipe, backend)
        train_epoch(step, update, parts, recipe.train.learning_rate, on_batch=lambda images: None)
        step.sums.tolist()

    return epoch


VARIANTS = {
    "notebook's loop": notebook_loop,
    "by hand": hand_written_loop,
    "core, eager": partial(core, False),
    "core, compiled": partial(core, True),
}
