"""Pipelines from Python: the specs that YAML gives, with names that an editor completes and types that mypy checks.

Each step is added by a method that returns it; `step["tensor"]` is a source, an input of the pipeline is one, too, and
a list of sources means what it does in YAML. What is left out keeps the default of the spec. `build` checks all fields
as `parse_pipeline` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import numpy.typing as npt
from pydantic import ValidationError

from contracts.errors import ConfigurationError
from contracts.messages import Scalar
from contracts.pipelines import PipelineSpec, describe_invalid
from contracts.yaml_lines import Lines


class Ref:
    """A tensor of a step or of the pipeline's inputs."""

    __slots__ = ("_source",)

    def __init__(self, source: str) -> None:
        self._source = source

    def __str__(self) -> str:
        return self._source


class Constant:
    """A tensor that is the same for every job."""

    __slots__ = ("datatype", "value")

    def __init__(self, value: npt.ArrayLike, datatype: str) -> None:
        self.value = value
        self.datatype = datatype


Single = Ref | Constant
Source = Single | Sequence[Single]
Members = Single | Sequence[Source]


class Step:
    """A step that was added; its tensors are `step["name"]`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, tensor: str) -> Ref:
        return Ref(f"{self.name}.{tensor}")


class When:
    """A condition: `When(linear["p"], "max_below", 0.9)`."""

    __slots__ = ("op", "tensor", "value")

    def __init__(self, tensor: Source, op: str, value: float | bool | str | None = None) -> None:  # noqa: FBT001
        self.tensor = tensor
        self.op = op
        self.value = value


class Default:
    """What a failed step is taken to have returned: `on_error=Default(p=Constant([[0.5, 0.5]], "FP32"))`."""

    __slots__ = ("tensors",)

    def __init__(self, **tensors: Constant) -> None:
        self.tensors = tensors


class Quorum:
    """Any so many members are enough."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


Conditions = When | Sequence[When]
OnError = Literal["fail", "skip"] | Default
Require = Literal["all", "best_effort", "first_of"] | Quorum


class StepOptions(TypedDict, total=False):
    """What every step may have."""

    when: Conditions


class ModelOptions(StepOptions, total=False):
    """What a model step may have."""

    parameters: Literal["pass"] | Mapping[str, Scalar]
    timeout_ms: int
    retries: int
    on_error: OnError


class JoinOptions(StepOptions, total=False):
    """What reducers and maps may have."""

    require: Require
    timeout_ms: int
    on_error: OnError


class CascadeOptions(StepOptions, total=False):
    """What a cascade may have."""

    parameters: Literal["pass"] | Mapping[str, Scalar]


class PipelineOptions(TypedDict, total=False):
    """What a pipeline may have, as in its spec."""

    description: str
    limits: Mapping[str, int]
    fused: bool
    workers: Mapping[str, int]
    device: Mapping[str, Any]
    topic: Mapping[str, int]


class Body:
    """Steps: those of a pipeline, or of the body of a map or a loop."""

    def __init__(self) -> None:
        self._steps: dict[str, dict[str, Any]] = {}

    def model(self, name: str, model: str, inputs: Mapping[str, Source], **options: Unpack[ModelOptions]) -> Step:
        """Ask a model: `name@version`, `name:label` or `name`."""
        return self._add(name, {"model": model, "inputs": inputs, **options})

    def pipeline(self, name: str, pipeline: str, inputs: Mapping[str, Source], **options: Unpack[StepOptions]) -> Step:
        """Put another pipeline's steps here."""
        return self._add(name, {"pipeline": pipeline, "inputs": inputs, **options})

    def reduce(
        self,
        name: str,
        reducer: str,
        inputs: Mapping[str, Members],
        settings: Mapping[str, Any] | None = None,
        **options: Unpack[JoinOptions],
    ) -> Step:
        """Compute one result from several members; `settings` are the reducer's own options."""
        return self._add(
            name, {"reduce": reducer, "inputs": inputs, **({"options": settings} if settings else {}), **options}
        )

    def cascade(
        self,
        name: str,
        models: Sequence[str],
        inputs: Mapping[str, Source],
        *,
        confidence: str,
        threshold: float,
        **options: Unpack[CascadeOptions],
    ) -> Step:
        """Ask the next model where the one before is not confident enough."""
        fields = {"cascade": list(models), "inputs": inputs, "confidence": confidence, "threshold": threshold}
        return self._add(name, {**fields, **options})

    def map(
        self,
        name: str,
        over: Ref | Mapping[str, Source],
        body: Body,
        outputs: Mapping[str, Source],
        *,
        axis: Literal[0, 1] = 0,
        max_rows: int | None = None,
        **options: Unpack[JoinOptions],
    ) -> Step:
        """Run a body for each row; in it, `row("name")` is the row's part."""
        how = {"over": over, "axis": axis, **({} if max_rows is None else {"max_rows": max_rows})}
        return self._add(name, {"map": how, "steps": body, "outputs": outputs, **options})

    def loop(
        self,
        name: str,
        times: int,
        body: Body,
        outputs: Mapping[str, Source],
        *,
        start: Mapping[str, Source] | None = None,
        until: Conditions = (),
        **options: Unpack[StepOptions],
    ) -> Step:
        """Run a body several times; in it, `turn("name")` is what the turn before returned."""
        turns = {"times": times, "start": start or {}, "until": until}
        return self._add(name, {"loop": turns, "steps": body, "outputs": outputs, **options})

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """The steps so far, as in YAML."""
        return self._steps

    def _add(self, name: str, fields: Mapping[str, Any]) -> Step:
        if name in self._steps:
            msg = f"step {name!r} is defined twice; rename one of them"
            raise ConfigurationError(msg)
        self._steps[name] = {key: _plain(value) for key, value in fields.items()}
        return Step(name)


class Pipeline(Body):
    """A pipeline in the making."""

    def __init__(self, name: str, version: int, **options: Unpack[PipelineOptions]) -> None:
        super().__init__()
        self._fields: dict[str, Any] = {"name": name, "version": version, **options}
        self._inputs: list[dict[str, Any]] = []

    def input(self, name: str, datatype: str, shape: Sequence[int]) -> Ref:
        """Declare what a job brings; the first size is the rows and must be -1."""
        self._inputs.append({"name": name, "datatype": datatype, "shape": tuple(shape)})
        return Ref(f"input.{name}")

    def build(self, outputs: Mapping[str, Source]) -> PipelineSpec:
        """The spec. Raises ConfigurationError for what it may not say."""
        content = {**self._fields, "inputs": self._inputs, "steps": self._steps, "outputs": _plain(outputs)}
        try:
            return PipelineSpec.model_validate(content)
        except ValidationError as exc:
            source = f"pipeline {self._fields['name']}@{self._fields['version']}"
            raise ConfigurationError(describe_invalid(exc, source, Lines())) from exc


def row(tensor: str) -> Ref:
    """In the body of a map: the row's part of that tensor."""
    return Ref(f"row.{tensor}")


def turn(tensor: str) -> Ref:
    """In the body of a loop: what the turn before returned by that name."""
    return Ref(f"turn.{tensor}")


def _plain(value: Any) -> Any:
    """As it would stand in YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    write = _writers.get(type(value))
    return value if write is None else write(value)


_writers: dict[type, Callable[[Any], Any]] = {
    Ref: str,
    Constant: lambda constant: {"const": constant.value, "datatype": constant.datatype},
    When: lambda when: {"tensor": _plain(when.tensor), "op": when.op, "value": when.value},
    Default: lambda default: {"default": _plain(default.tensors)},
    Quorum: lambda quorum: {"quorum": quorum.count},
    Body: lambda body: body.steps,
}
