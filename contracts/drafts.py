"""Nodes of a plan before they are checked and placed, each with the path in the spec that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from contracts.messages import Scalar
from contracts.names import ModelVersion
from contracts.plans import Constant, Kind, Source
from contracts.yaml_lines import Path

Alternatives = tuple[Source | Constant, ...]


class Fault(NamedTuple):
    """Something wrong with a spec, and where; a warning does not keep it from running."""

    path: Path
    message: str
    is_warning: bool = False


class Input(NamedTuple):
    """One input of a node."""

    name: str
    alternatives: Alternatives
    path: Path


class Test(NamedTuple):
    """One condition of a guard."""

    alternatives: Alternatives
    op: str
    value: float | int | bool | str | None
    path: Path


class Gate(NamedTuple):
    """A guard of a node."""

    tests: tuple[Test, ...]
    is_negated: bool = False


@dataclass
class Draft:
    """A node before it is checked and placed."""

    name: str
    kind: Kind
    path: Path
    scope: str
    step: Any = None
    members: list[list[Input]] = field(default_factory=list)
    gates: tuple[Gate, ...] = ()
    model: ModelVersion | None = None
    parameters: str | Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def tests(self) -> list[Test]:
        """All conditions of its guards."""
        return [test for gate in self.gates for test in gate.tests]

    @property
    def sources(self) -> list[Source]:
        """Everything that it reads."""
        lists = [entry.alternatives for member in self.members for entry in member]
        lists += [test.alternatives for test in self.tests]
        return [each for alternatives in lists for each in alternatives if isinstance(each, Source)]
