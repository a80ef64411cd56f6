"""The examples without a stack: their scripts as modules, and their pipelines run by the plan and the models alone.

The runner carries out what the plan says one thing after the other, in this process. What it answers is what a chained
and a fused run must answer, too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from contracts.advance import advance, fire, is_ready, start
from contracts.compile import compile_plan, signature_of_spec
from contracts.messages import Parameters
from contracts.names import ModelVersion
from contracts.pipelines import PipelineSpec, pipeline_from
from contracts.plans import Answer, Ask, Branch, Emission, Part, Plan, Value
from contracts.specs import ModelSpec, parse_model
from contracts.tensors import Tensor
from contracts.yaml_lines import load
from workers.backends import new_backend
from workers.backends.base import Backend, ModelContext

takes_minutes = pytest.mark.skipif(
    not os.environ.get("HEADRACE_TEST_EXAMPLES"), reason="takes minutes: `make examples` runs it"
)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Arrays = dict[str, npt.NDArray[Any]]


def script(example: str, name: str) -> ModuleType:
    """A script of an example as a module."""
    path = EXAMPLES / example / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{example}_{name}".replace("-", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and named tuples look themselves up
    spec.loader.exec_module(module)
    return module


def texts(*elements: str | bytes) -> npt.NDArray[Any]:
    """One row for each text or file."""
    found = np.empty(len(elements), object)
    found[:] = [element.encode() if isinstance(element, str) else element for element in elements]
    return found


class LocalFleet:
    """The models and pipelines of a fleet file, run in this process."""

    def __init__(self, file: Path, threads: int = 2) -> None:
        content, lines = load(file.read_text(), str(file))
        self._folder = (file.parent / content["models"]).resolve()
        self._threads = threads
        self._backends: dict[ModelVersion, Backend] = {}
        self.specs: dict[ModelVersion, PipelineSpec] = {}
        for number, entry in enumerate(content["pipelines"]):
            spec = pipeline_from(entry, str(file), lines.below(("pipelines", number)))
            self.specs[spec.key] = spec
        self._plans: dict[str, Plan] = {}
        self.rows: Counter[str] = Counter()
        """Rows that each model was asked."""

    def plan(self, pipeline: str) -> Plan:
        """A pipeline of the file, compiled."""
        if pipeline not in self._plans:
            self._plans[pipeline] = compile_plan(
                self.specs[ModelVersion.parse(pipeline)],
                pin=lambda name, version, _: ModelVersion(name, version or 1),
                signature_of=lambda key: signature_of_spec(self.model(key)),
            )
        return self._plans[pipeline]

    def model(self, key: ModelVersion) -> ModelSpec:
        """A model's spec."""
        path = self._folder / key.model / str(key.version) / "model.yaml"
        return parse_model(path.read_text(), str(path))

    def ask(self, key: ModelVersion, inputs: Arrays, parameters: Parameters) -> Arrays:
        """Call a model."""
        if key not in self._backends:
            spec = self.model(key)
            backend = new_backend(spec.backend)
            backend.load(ModelContext(spec, self._folder / key.model / str(key.version), self._threads))
            self._backends[key] = backend
        rows = len(next(iter(inputs.values())))
        self.rows[str(key)] += rows
        return self._backends[key].infer(inputs, rows, parameters)

    def run(self, pipeline: str, inputs: Arrays, parameters: Parameters | None = None) -> Arrays:
        """Run a job to its end; its outputs."""
        plan = self.plan(pipeline)
        tensors = [Tensor.from_numpy(name, array) for name, array in inputs.items()]
        waiting = deque(start(plan, tensors, parameters or {}))
        joins: dict[tuple[str, Branch], dict[str | int, Part]] = {}
        fired: set[tuple[str, Branch]] = set()
        while waiting:
            emission: Emission = waiting.popleft()
            if isinstance(emission, Answer):
                assert emission.failure is None, emission.failure
                return {tensor.name: tensor.to_numpy() for tensor in emission.outputs}
            if isinstance(emission, Ask):
                waiting += self._asked(plan, emission)
                continue
            place = (emission.join, emission.branch)
            joins.setdefault(place, {})[emission.source] = emission
            if place not in fired and is_ready(plan, emission.join, joins[place]):
                fired.add(place)
                waiting += fire(plan, emission.join, emission.branch, joins[place])
        raise AssertionError("the job ended without an answer")

    def _asked(self, plan: Plan, ask: Ask) -> list[Emission]:
        given = {tensor.name: tensor.to_numpy() for tensor in ask.inputs}
        found = self.ask(ask.model, given, ask.parameters)
        outcome = Value({name: Tensor.from_numpy(name, array) for name, array in found.items()})
        return advance(plan, ask.node, ask.branch, outcome, ask.carried)

    def close(self) -> None:
        """Let go of the models."""
        for backend in self._backends.values():
            backend.close()


def same(one: Mapping[str, npt.NDArray[Any]], other: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether two answers are equal, bit by bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )
