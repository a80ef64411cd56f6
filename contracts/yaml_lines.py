"""YAML with the line of everything in it: the only door to yaml for what operators write.

A mistake is found long after the text was parsed, by a type, by a relation between fields or by the compiler of
pipelines; `Lines` finds its place again by the path of keys and indexes. A key that stands twice in a mapping is
refused: YAML would let the last one win in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from contracts.errors import ConfigurationError

Path = tuple[str | int, ...]


class Lines:
    """Where each key and element of a document stands, counted from 1."""

    def __init__(self, lines: dict[tuple[str, ...], int] | None = None) -> None:
        self._lines = lines or {}

    def at(self, path: Iterable[str | int]) -> int | None:
        """The line of what is at `path`, or of the nearest thing around it; None when nothing is known."""
        keys = tuple(map(str, path))
        for length in range(len(keys), -1, -1):
            line = self._lines.get(keys[:length])
            if line is not None:
                return line
        return None

    def below(self, path: Iterable[str | int]) -> Lines:
        """The lines of the part at `path`, as a document of its own."""
        prefix = tuple(map(str, path))
        size = len(prefix)
        return Lines({keys[size:]: line for keys, line in self._lines.items() if keys[:size] == prefix})


def load(text: str, source: str) -> tuple[Any, Lines]:
    """The content of a YAML text and its lines; `source` names it in errors. Raises ConfigurationError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        msg = f"{source} is not valid YAML: {exc}"
        raise ConfigurationError(msg) from exc
    except RecursionError as exc:
        msg = f"{source} is nested too deeply"
        raise ConfigurationError(msg) from exc
    lines: dict[tuple[str, ...], int] = {}
    for keys, line in _walk(root, (), frozenset()):
        if keys in lines:
            msg = (
                f"{source}:{line}: {'.'.join(keys)} is defined twice (first in line {lines[keys]}); rename one of them"
            )
            raise ConfigurationError(msg)
        lines[keys] = line
    return content, Lines(lines)


def _walk(node: yaml.Node | None, keys: tuple[str, ...], seen: frozenset[int]) -> Iterator[tuple[tuple[str, ...], int]]:
    if node is None or id(node) in seen:  # an alias inside of what it stands for
        return
    if not keys:
        yield keys, node.start_mark.line + 1
    inside = seen | {id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*keys, str(key.value))
            yield name, key.start_mark.line + 1
            yield from _walk(value, name, inside)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            name = (*keys, str(index))
            yield name, value.start_mark.line + 1
            yield from _walk(value, name, inside)
