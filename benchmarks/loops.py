"""Training loops as people write them by hand: the reference for speed, independent of the training core."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from stages.common.dataset import DatasetInfo, Split
from stages.training.recipe import Recipe, build_model

Epoch = Callable[[int], None]  # trains the epoch of this number and waits until that is done


class PilImages(Dataset):
    """Images as torchvision's CIFAR10 hands them out: one at a time, through PIL."""

    def __init__(self, split: Split, transform: Callable):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def plain_model(recipe: Recipe, info: DatasetInfo, device: torch.device) -> tuple[nn.Module, torch.optim.SGD]:
    """Return the model as it is usually written, with ReLU before pooling: the same values and gradients."""
    model = build_model(recipe, len(info.classes)).train().to(device)
    if recipe.model == "cnn":
        for i in (2, 6, 10):
            model.features[i], model.features[i + 1] = nn.ReLU(), model.features[i]
    train = recipe.train
    options = {"momentum": train.momentum, "weight_decay": train.weight_decay}
    return model, torch.optim.SGD(model.parameters(), train.learning_rate, **options)


def plain_loop(recipe: Recipe, info: DatasetInfo, split: Split, device: torch.device) -> Epoch:
    """PIL transforms in two workers, default memory format and precision, sums that wait for the device each step."""
    crop = transforms.RandomCrop(split.images.shape[1], padding=recipe.augment.crop_padding)
    normalise = [transforms.ToTensor(), transforms.Normalize(info.mean, info.std)]
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *normalise])
    # Fork is what a script gets on Linux before Python 3.14; this process may have been started in another way.
    options = {"shuffle": True, "num_workers": 2, "multiprocessing_context": "fork"}
    loader = DataLoader(PilImages(split, transform), recipe.train.batch_size, **options)
    model, optimizer = plain_model(recipe, info, device)

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


def tuned_loop(recipe: Recipe, info: DatasetInfo, split: Split, device: torch.device) -> Epoch:
    """The usual advice taken: data on the device, augmented an epoch at a time, channels_last, autocast and
    cudnn.benchmark."""
    torch.backends.cudnn.benchmark = True
    padding, size = recipe.augment.crop_padding, split.images.shape[1]
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (info.mean, info.std))
    images = (torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2) / 255 - mean) / std
    labels = torch.from_numpy(split.labels).to(device)
    padded = F.pad(images, [padding] * 4)
    model, optimizer = plain_model(recipe, info, device)
    model.to(memory_format=torch.channels_last)

    def crop_and_flip(batch: torch.Tensor) -> torch.Tensor:
        top, left = torch.randint(0, 2 * padding + 1, (2, len(batch), 1), device=device)
        pixels, image = torch.arange(size, device=device), torch.arange(len(batch), device=device)
        out = batch[image[:, None, None], :, (top + pixels)[:, :, None], (left + pixels)[:, None]].permute(0, 3, 1, 2)
        mirrored = torch.rand(len(batch), device=device) < 0.5
        return torch.where(mirrored[:, None, None, None], out.flip(3), out)

    def epoch(number: int) -> None:
        augmented = torch.cat([crop_and_flip(chunk) for chunk in padded.split(5000)])
        loss_sum = torch.zeros((), device=device)
        for index in torch.randperm(len(labels), device=device).split(recipe.train.batch_size):
            x = augmented[index].contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(model(x), labels[index])
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(index)
        loss_sum.item()

    return epoch
