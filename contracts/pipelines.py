"""What operators write about a pipeline: named steps that say where their inputs come from, and the outputs.

A source is written `step.tensor`: `input` is the pipeline's own, `row` (in a map) and `turn` (in a loop) those of the
body. A constant may stand wherever a source may. For a model, a list of sources means "the first one present"; for a
reducer, one source for each member. `contracts.compile` makes a plan of a spec; here is only what a spec looks like.

The same spec comes from YAML (`parse_pipeline`) and from Python (`contracts.pipeline_builder`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from contracts.conditions import check_operator
from contracts.errors import ConfigurationError
from contracts.messages import Scalar
from contracts.names import ModelVersion
from contracts.pipeline_sources import Alternatives, ConstantSpec, Members, Reference, Sources, SourceText
from contracts.serving_specs import Spec
from contracts.specs import DeviceSpec, ModelName, TensorSpec, TopicSpec, Version, WorkersSpec
from contracts.yaml_lines import Lines, load

# --- steps ------------------------------------------------------------------------------------------------------------


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (dict, ConditionSpec)) else value


class ConditionSpec(Spec):
    """A yes or no about one tensor."""

    tensor: Alternatives
    op: str
    """max_below, max_at_least, equals, not_equals, less, less_equal, greater, greater_equal, empty or not_empty."""
    value: float | int | bool | str | None = None

    @model_validator(mode="after")
    def _operator(self) -> ConditionSpec:
        check_operator(self.op, self.value)
        return self


Conditions = Annotated[tuple[ConditionSpec, ...], BeforeValidator(_as_list)]
"""One condition or several, which all must hold."""


class DefaultSpec(Spec):
    """What a failed step is taken to have returned."""

    default: Annotated[dict[str, ConstantSpec], Field(min_length=1)]


class QuorumSpec(Spec):
    """Any so many branches are enough."""

    quorum: Annotated[int, Field(ge=1, le=10_000)]


def _word_or_mapping(value: Any) -> str:
    return "<word>" if isinstance(value, str) else "<mapping>"


OnError = Annotated[
    Annotated[Literal["fail", "skip"], Tag("<word>")] | Annotated[DefaultSpec, Tag("<mapping>")],
    Discriminator(_word_or_mapping),
]
Require = Annotated[
    Annotated[Literal["all", "best_effort", "first_of"], Tag("<word>")] | Annotated[QuorumSpec, Tag("<mapping>")],
    Discriminator(_word_or_mapping),
]
StepParameters = Annotated[
    Annotated[Literal["pass"], Tag("<word>")] | Annotated[dict[str, Scalar], Tag("<mapping>")],
    Discriminator(_word_or_mapping),
]
_Timeout = Annotated[int | None, Field(ge=1, le=6 * 3_600_000)]


class _Step(Spec):
    when: Conditions = ()
    """All must hold, or the step is skipped."""


class ModelStep(_Step):
    """Ask a model."""

    model: Reference
    """`name@version`, `name:label`, or `name` for the route's default; pinned when a job is submitted."""
    inputs: Sources
    """The model's inputs by name."""
    parameters: StepParameters = Field(default_factory=dict)
    """What the model is given; `pass` hands on the caller's."""
    timeout_ms: _Timeout = None
    """How long an attempt may take; by default the job's own deadline is the only one."""
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    on_error: OnError = "fail"


class PipelineStep(_Step):
    """Another pipeline, as if its steps stood here; they are named `step/inner`."""

    pipeline: Reference
    inputs: Sources


class ReduceStep(_Step):
    """A reducer over the members' tensors."""

    reduce: str
    inputs: Annotated[dict[str, Members], Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)
    require: Require = "all"
    timeout_ms: _Timeout = None
    """With a `require` other than all: how long after its first branch the step waits for the others."""
    on_error: OnError = "fail"


class OverSpec(Spec):
    """What a map goes over."""

    over: SourceText | Annotated[dict[str, Alternatives], Field(min_length=1)]
    """The tensor whose rows the body sees one by one as `row.<its name>`; or several, by the name the body uses."""
    axis: Literal[0, 1] = 0
    """0: one row after the other. 1: what a model answered for one row, `tensor[:, i]`; outputs are stacked alike."""
    max_rows: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """More rows than this are the step's failure."""


class MapStep(_Step):
    """Run steps for each row of a tensor, and put the outputs together again in the order of the rows."""

    map: OverSpec
    steps: dict[str, Step]
    outputs: Sources
    require: Require = "all"
    """What becomes of failed rows."""
    timeout_ms: _Timeout = None
    on_error: OnError = "fail"


class TurnsSpec(Spec):
    """How often a loop runs its body."""

    times: Annotated[int, Field(ge=1, le=32)]
    start: dict[str, Alternatives] = Field(default_factory=dict)
    """What the first turn sees as `turn.<name>`; later ones see the outputs of the turn before."""
    until: Conditions = ()
    """No further turn once these hold; their tensors are outputs of the loop, written `turn.<name>`."""


class LoopStep(_Step):
    """Run steps several times, each turn on what the one before returned; unrolled when compiled."""

    loop: TurnsSpec
    steps: dict[str, Step]
    outputs: Sources


class StageSpec(Spec):
    """One model of a cascade."""

    model: Reference
    inputs: dict[str, Alternatives] | None = None
    """By default those of the step."""
    timeout_ms: _Timeout = None
    retries: Annotated[int, Field(ge=0, le=10)] = 0


def _as_stages(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    return [{"model": stage} if isinstance(stage, str) else stage for stage in value]


class CascadeStep(_Step):
    """Ask the next model only where the one before is not confident enough."""

    cascade: Annotated[tuple[StageSpec, ...], Field(min_length=2, max_length=16), BeforeValidator(_as_stages)]
    inputs: dict[str, Alternatives] = Field(default_factory=dict)
    confidence: Annotated[str, Field(min_length=1, max_length=128)]
    """The output whose greatest value in each row says how sure the model is."""
    threshold: float
    """The next model is asked when some row's confidence is below this."""
    parameters: StepParameters = Field(default_factory=dict)


STEP_KINDS: Final[dict[str, type[Spec]]] = {
    "model": ModelStep,
    "pipeline": PipelineStep,
    "reduce": ReduceStep,
    "map": MapStep,
    "loop": LoopStep,
    "cascade": CascadeStep,
}


def _step_tag(value: Any) -> str | None:
    for kind, step in STEP_KINDS.items():
        if isinstance(value, step):
            return f"<{kind}>"
    found = [kind for kind in STEP_KINDS if isinstance(value, dict) and kind in value]
    return f"<{found[0]}>" if len(found) == 1 else None


Step = Annotated[
    Annotated[ModelStep, Tag("<model>")]
    | Annotated[PipelineStep, Tag("<pipeline>")]
    | Annotated[ReduceStep, Tag("<reduce>")]
    | Annotated[MapStep, Tag("<map>")]
    | Annotated[LoopStep, Tag("<loop>")]
    | Annotated[CascadeStep, Tag("<cascade>")],
    Discriminator(
        _step_tag,
        custom_error_type="step",
        custom_error_message="a step has exactly one of model, pipeline, reduce, map, loop and cascade",
    ),
]
MapStep.model_rebuild()
LoopStep.model_rebuild()


# --- the pipeline -----------------------------------------------------------------------------------------------------


class LimitsSpec(Spec):
    """What a pipeline may take up."""

    open_jobs: Annotated[int | None, Field(ge=1)] = None
    """Jobs that were submitted and not answered, at most; beyond, submissions are OVERLOADED."""


class PipelineSpec(Spec):
    """One version of a pipeline."""

    name: ModelName
    version: Version
    description: str = ""
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    """What a job brings."""
    steps: Annotated[dict[str, Step], Field(min_length=1)]
    outputs: Sources
    """What a job returns, by name."""
    limits: LimitsSpec = LimitsSpec()
    fused: bool = False
    """Run the whole pipeline in memory in one worker."""
    workers: WorkersSpec = WorkersSpec()
    """Workers that put parts together (or, fused, run everything)."""
    device: DeviceSpec | None = None
    """Fused only: what a worker needs."""
    topic: TopicSpec = TopicSpec()

    @property
    def key(self) -> ModelVersion:
        """Name and version."""
        return ModelVersion(self.name, self.version)

    @property
    def partitions(self) -> int:
        """Partitions of its topics."""
        return self.topic.partitions or max(8, 4 * self.workers.max)

    @model_validator(mode="after")
    def _consistent(self) -> PipelineSpec:
        names = [tensor.name for tensor in self.inputs]
        if len(set(names)) < len(names):
            msg = f"input {next(name for name in names if names.count(name) > 1)!r} is declared twice"
            raise ValueError(msg)
        if any(name.startswith("*") for name in names):
            msg = "names of inputs must not begin with '*'"
            raise ValueError(msg)
        if self.topic.lanes:
            msg = "topic.lanes belongs to the deployments of models: a job's steps go into the lanes of their models"
            raise ValueError(msg)
        if self.device is not None and not self.fused:
            msg = "device belongs to a fused pipeline; otherwise the models' own deployments say what they need"
            raise ValueError(msg)
        return self

    def canonical(self) -> dict[str, Any]:
        """The spec as plain data without defaults: equal for equal specs, whether from YAML or from Python."""
        return self.model_dump(mode="json", exclude_defaults=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_pipeline(text: str, source: str) -> tuple[PipelineSpec, Lines]:
    """Read a pipeline's YAML; `source` names it in errors. Raises ConfigurationError with the lines of all faults."""
    content, lines = load(text, source)
    return pipeline_from(content, source, lines), lines


def pipeline_from(content: Any, source: str, lines: Lines) -> PipelineSpec:
    """The pipeline that a piece of YAML says, whose lines are these. Raises ConfigurationError."""
    if not isinstance(content, dict):
        msg = f"{source} must be a mapping with the fields of a pipeline: name, version, inputs, steps, outputs"
        raise ConfigurationError(msg)
    try:
        return PipelineSpec.model_validate(content)
    except ValidationError as exc:
        raise ConfigurationError(describe_invalid(exc, source, lines)) from exc


def describe_invalid(exc: ValidationError, source: str, lines: Lines) -> str:
    """What pydantic found, with the lines of the file."""
    faults = []
    for fault in exc.errors():
        path = [part for part in fault["loc"] if not str(part).startswith("<")]
        line = lines.at(path)
        message = fault["msg"].removeprefix("Value error, ")
        place = source if line is None else f"{source}:{line}"
        faults.append((line or 0, f"{place}: {'.'.join(map(str, path)) or 'file'}: {message}"))
    return "\n".join(text for _, text in sorted(faults, key=lambda entry: entry[0]))
