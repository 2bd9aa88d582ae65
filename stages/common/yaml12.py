"""YAML files, read as YAML 1.2.

DVC does so too, and also knows dates, merge keys, binary numbers and numbers with underscores, which this does not.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from stages.common.errors import UserError, printable
from stages.common.files import read_bytes

MAX_BYTES = 2**20  # of a file


class Yaml12(yaml.SafeLoader):
    """YAML 1.2: `1e-05`, which DVC writes for `-S train.weight_decay=1e-5`, is a number, and `no` a
    string. PyYAML's default, YAML 1.1, reads a string and a boolean."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "this key is given twice", node.start_mark)
        return mapping


for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+.0123456789")),
):  # fmt: skip
    Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})$"), first)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))


Yaml12.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_yaml(text: str, where: str | Path) -> Any:
    """A YAML 1.2 document.

    Raises:
        UserError: it is none, or none that this can read; the message begins with `where`.
    """
    try:
        return yaml.load(text, Yaml12)  # a SafeLoader
    # A KeyError or an AttributeError comes of a tag such as `!!bool x`
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {printable(error)}") from error


def read_yaml(path: Path) -> Any:
    """The YAML 1.2 document in a file of at most MAX_BYTES."""
    content = read_bytes(path, MAX_BYTES, missing="no such file here; run this in the folder of the project")
    try:
        return parse_yaml(content.decode(), path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: {printable(error)}") from error
