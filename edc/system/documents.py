"""Text, JSON and YAML from files that anybody may have written: read in bounds, refused in one line.

A file says how much it holds, and aliases let a few lines of YAML say it many times over. So the bytes of a document,
its depth, the number of its values and the digits of its numbers have limits far above what any recipe, manifest or
bench needs. Nothing here waits for a FIFO or reads a device.
"""

import errno
import json
import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from edc.errors import cut, shown

__all__ = ["MOST_BYTES", "MOST_YAML_BYTES", "json_from_text", "read_text", "require_regular", "yaml_from_text"]

MOST_BYTES = 16 << 20
MOST_YAML_BYTES = 512 << 10
"""PyYAML reads some hundred kilobytes a second."""
MOST_LEVELS = 50
MOST_VALUES = 100_000
"""Of a YAML document, aliases written out."""
MOST_DIGITS = 19
"""Whole numbers fit into 64 bits."""


def require_regular(path: Path) -> None:
    """Raises `OSError` unless `path` is a regular file: neither a folder nor a FIFO, which waits, nor a device."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Returns the UTF-8 text of a regular file.

    Raises:
        OSError: there is none, it cannot be read, or it is larger than `most_bytes`; `strerror` says which.
        UnicodeDecodeError: it is no text.
    """
    require_regular(path)
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        found = f"larger than the {most_bytes >> 10} KiB that such a file may have"
        raise OSError(errno.EFBIG, found, str(path))
    return content.decode("utf-8")


def json_from_text(text: str) -> Any:
    """Returns what a JSON document holds; raises `ValueError`, whose text is one line, for anything that is not one."""
    try:
        document = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_LEVELS} levels") from None
    waiting = [(document, 1)]
    while waiting:
        value, level = waiting.pop()
        if level > MOST_LEVELS:
            raise ValueError(f"nested deeper than {MOST_LEVELS} levels")
        if isinstance(value, dict):
            waiting += [(item, level + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, level + 1) for item in value]
        elif isinstance(value, str) and (fault := _fault_of(value)):
            raise ValueError(fault)
    return document


def _fault_of(value: str) -> str:
    """Returns what is wrong with a text: a NUL, which no path may hold, or half of a pair of surrogates."""
    is_text = "\0" not in value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        is_text = False
    return "" if is_text else f"found {shown(value)}, which is no text"


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"found a number of {len(digits)} digits, expected at most {MOST_DIGITS}")
    return int(digits)


def yaml_from_text(text: str) -> Any:
    """Returns what a YAML document holds: mappings, lists, text, numbers, booleans and null; a date is text.

    Raises:
        ValueError: it is not valid YAML, has a key twice, or is out of bounds. The text says where.
    """
    if len(text) > MOST_YAML_BYTES:
        raise ValueError(f"larger than the {MOST_YAML_BYTES >> 10} KiB that a document may have")
    try:
        return yaml.load(text, Loader=_BoundedLoader)
    except yaml.YAMLError as error:
        raise ValueError(cut(str(error), 800)) from None


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's own loader keeps the last of two equal keys in silence, and bounds nothing."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}
        """Levels and values of each node that is complete."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark, is_alias = event.start_mark, isinstance(event, yaml.AliasEvent)
        self._level += 1
        if self._level > MOST_LEVELS:
            raise ConstructorError(None, None, f"nested deeper than {MOST_LEVELS} levels", mark)
        node = super().compose_node(parent, index)
        assert node is not None
        self._level -= 1
        if is_alias and node not in self._extents:
            raise ConstructorError(None, None, f"*{cut(event.anchor, 40)} stands within itself", mark)
        if node not in self._extents:
            self._extents[node] = levels, values = self._extent(node)
            if levels > MOST_LEVELS:
                raise ConstructorError(None, None, f"aliases nested deeper than {MOST_LEVELS} levels", mark)
            if values > MOST_VALUES:
                raise ConstructorError(None, None, f"more than {MOST_VALUES} values, aliases written out", mark)
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        extents = [self._extents[part] for part in parts]
        return 1 + max((levels for levels, _ in extents), default=0), 1 + sum(values for _, values in extents)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            # PyYAML takes 0x_ for a number, and !!bool and !!timestamp for a promise.
            found = f"found {shown(node.value)}, which is no {node.tag.rpartition(':')[2]}; quote what is text"
            raise ConstructorError(None, None, cut(found, 200), node.start_mark) from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ConstructorError(None, None, "found a whole number of more than 64 bits", node.start_mark)
        if isinstance(value, str) and (fault := _fault_of(value)):
            raise ConstructorError(None, None, fault, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *other`: keys beside it win
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConstructorError(None, None, f"found {shown(key)} as a key, expected a name", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"duplicate key {shown(key)}; keep one of them", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""A recipe has no dates, but a name like 2026-11-25."""
