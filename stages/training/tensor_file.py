"""Tensors and a JSON object as one safetensors file, with a digest over both: a flipped bit is found on reading.

The bytes depend on the content alone. They are written from one flat buffer, so that a background thread can do it
without stopping the training (safetensors' own writer holds the interpreter's lock while it converts each tensor).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from stages.common.files import read_bytes

MAX_BYTES = 2**36  # of a file
ENTRY = "card"  # the one entry of metadata: safetensors writes several in random order
NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


class Layout:
    """The place of each tensor in a flat buffer, larger element types first, so that each is aligned.

    Args:
        tensors: the tensors, on any device; only shapes and types are read.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors: dict[str, dict[str, Any]] = {}
        self.size = 0  # bytes
        for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
            end = self.size + tensor.nbytes
            self.tensors[name] = {
                "dtype": NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [self.size, end],
            }
            self.size = end

    def views(self, buffer: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """A view of the buffer (uint8, of `size`) for each tensor, contiguous, with the type and shape of `like`."""
        views = {}
        for name, place in self.tensors.items():
            begin, end = place["data_offsets"]
            views[name] = buffer[begin:end].view(like[name].dtype).view(like[name].shape)
        return views

    def head(self, card: dict[str, Any], buffer: memoryview) -> bytes:
        """The bytes of the file before those of the buffer."""
        entry = json.dumps(card | {"sha256": _digest(card, self.tensors, buffer)}, sort_keys=True)
        header = json.dumps({"__metadata__": {ENTRY: entry}, **self.tensors}).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header


def to_bytes(card: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """The content of a file with these tensors."""
    layout = Layout(tensors)
    buffer = torch.empty(layout.size, dtype=torch.uint8)
    for name, view in layout.views(buffer, tensors).items():
        view.copy_(tensors[name])
    content = buffer.numpy().data
    return layout.head(card, content) + content.tobytes()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of a file, see `from_bytes`.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    return from_bytes(read_bytes(path, MAX_BYTES))


def from_bytes(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON object and the tensors, on the CPU.

    Raises:
        ValueError: the content is no such file, or damaged.
    """
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        card = json.loads(header.pop("__metadata__")[ENTRY])
        digest = card.pop("sha256")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no safetensors file of this pipeline: {error}") from error
    if digest != _digest(card, header, memoryview(content)[8 + size :]):
        raise ValueError("damaged: its content does not have the digest that it states")
    return card, tensors


def _digest(card: dict[str, Any], tensors: dict[str, Any], buffer: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([card, tensors], sort_keys=True).encode())
    digest.update(buffer)
    return digest.hexdigest()
