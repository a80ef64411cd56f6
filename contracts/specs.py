"""What operators write: `model.yaml` beside a model's artefacts, and `fleet.yaml`.

Everything is frozen, unknown fields are refused, and relations between fields are checked here, so that a spec that
parses can be carried out. `parse_model` and `parse_fleet` turn a file's text into specs and a fault into a
ConfigurationError that names file, field and remedy.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from contracts.errors import ConfigurationError
from contracts.names import MAX_VERSION, ModelVersion, check_model_name
from contracts.serving_specs import BatchingSpec, OnnxSpec, SequencesSpec, Spec, TorchSpec
from contracts.tensors import BYTES, DATATYPES
from contracts.topics import collides
from contracts.yaml_lines import load


def _model_name(value: str) -> str:
    try:
        return check_model_name(value)
    except ConfigurationError as exc:
        raise ValueError(str(exc)) from exc


def _model_key(value: str) -> str:
    try:
        return str(ModelVersion.parse(value))
    except ConfigurationError as exc:
        raise ValueError(str(exc)) from exc


ModelName = Annotated[str, AfterValidator(_model_name)]
ModelKey = Annotated[str, AfterValidator(_model_key)]
Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]

default_artefacts = {"onnx": "model.onnx", "torch": "model.pt", "python": "model.py"}


class TensorSpec(Spec):
    """One input or output of a model."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """As the model itself names it."""
    datatype: str
    """An Open Inference Protocol datatype."""
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    """Sizes of all dimensions, -1 where any size goes. The first is the batch and must be -1."""

    @field_validator("datatype")
    @classmethod
    def _known_datatype(cls, value: str) -> str:
        if value not in DATATYPES:
            msg = f"unknown datatype; use one of {', '.join(DATATYPES)}"
            raise ValueError(msg)
        return value

    @field_validator("shape")
    @classmethod
    def _batch_first(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or value[0] != -1:
            msg = "the first dimension is the batch and must be -1"
            raise ValueError(msg)
        return value


class Knobs(Spec):
    """Fields of a model's BatchingSpec that were set by hand while it serves; None leaves the model's own value."""

    max_batch_size: Annotated[int | None, Field(ge=1, le=65536)] = None
    max_batch_delay_ms: Annotated[float | None, Field(ge=0, le=60_000)] = None
    slo_ms: Annotated[float | None, Field(gt=0, le=3_600_000)] = None
    preferred_batch_sizes: tuple[Annotated[int, Field(ge=1, le=65536)], ...] | None = None
    max_queue_rows: Annotated[int | None, Field(ge=1)] = None
    overflow: Literal["delay", "reject"] | None = None

    def applied(self, batching: BatchingSpec) -> BatchingSpec:
        """The spec with these knobs. Raises ConfigurationError when the two together make no sense.

        max_batch_size may fall and rise again but not beyond the model's own: its slots were made for that.
        """
        changes = self.model_dump(exclude_none=True)
        wanted = changes.get("max_batch_size", 0)
        if wanted > batching.max_batch_size:
            msg = f"max_batch_size {wanted} is above the model's own {batching.max_batch_size}: raise it in model.yaml"
            raise ConfigurationError(msg)
        try:
            return BatchingSpec.model_validate({**batching.model_dump(), **changes})
        except ValidationError as exc:
            raise ConfigurationError(_describe(exc, "these knobs")) from exc


class ModelSpec(Spec):
    """`model.yaml`: one version of a model."""

    name: ModelName
    version: Version
    backend: Literal["onnx", "python", "torch"]
    artefact: str = ""
    """File beside model.yaml; by default model.onnx, model.py or model.pt."""
    handler: str = ""
    """`module:Class` in the version's folder. python backend: the model, by default `model:Model`. torch backend: the
    torch.nn.Module whose weights the artefact holds, which then is model.safetensors by default."""
    description: str = ""
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    batching: BatchingSpec = BatchingSpec()
    streaming: bool = False
    """Whether the model yields its answer in parts. Each request then has one row. Backend python, or torch with a
    handler."""
    sequences: SequencesSpec | None = None
    """For models that keep a state from step to step of a sequence. Each request then is a step and has one row. python
    backend only."""
    nan: Literal["allow", "reject"] = "allow"
    """Whether NaN and infinity in floating-point inputs are passed on or answered INVALID."""
    onnx: OnnxSpec = OnnxSpec()
    """Options of the onnx backend."""
    torch: TorchSpec = TorchSpec()
    """Options of the torch backend."""
    slot_mib: Annotated[float | None, Field(gt=0, le=4096)] = None
    """Room for one batch's inputs and outputs in shared memory; by default computed from the shapes."""

    @property
    def key(self) -> ModelVersion:
        """Name and version."""
        return ModelVersion(self.name, self.version)

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        for side in (self.inputs, self.outputs):
            twice = [name for name, count in Counter(tensor.name for tensor in side).items() if count > 1]
            if twice:
                msg = f"tensor {twice[0]!r} is declared twice"
                raise ValueError(msg)
        if self.handler and self.backend == "onnx":
            msg = "handler belongs to the python and torch backends"
            raise ValueError(msg)
        for kind, is_default in (("onnx", self.onnx == OnnxSpec()), ("torch", self.torch == TorchSpec())):
            if not is_default and self.backend != kind:
                msg = f"{kind}: belongs to the {kind} backend"
                raise ValueError(msg)
        self._check_streaming()
        if "/" in self.artefact or self.artefact.startswith("."):
            msg = "artefact must be a file in the version's own folder"
            raise ValueError(msg)
        return self

    def _check_streaming(self) -> None:
        if not self.streaming and self.sequences is None:
            return
        if self.streaming and self.sequences is not None:
            msg = "streaming and sequences exclude each other"
            raise ValueError(msg)
        what = "streaming" if self.streaming else "sequences"
        if self.backend not in (("python", "torch") if self.streaming else ("python",)):
            msg = f"{what} does not go with the {self.backend} backend"
            raise ValueError(msg)
        if self.backend == "torch" and not self.handler:
            msg = "streaming with the torch backend needs a handler: only a declared module can yield"
            raise ValueError(msg)
        if self.batching.batch_invariant:
            msg = f"batch_invariant and {what} exclude each other: added rows would belong to nobody"
            raise ValueError(msg)
        if self.max_request_rows > 1:
            msg = f"a request of a model with {what} has one row: leave out max_request_rows"
            raise ValueError(msg)

    @property
    def max_request_rows(self) -> int:
        """Rows in a request, at most."""
        has_single_rows = self.streaming or self.sequences is not None
        return self.batching.max_request_rows or (1 if has_single_rows else self.batching.max_batch_size)

    @model_validator(mode="after")
    def _can_be_padded(self) -> ModelSpec:
        padding, inputs = self.batching.padding, {tensor.name: tensor for tensor in self.inputs}
        for role, name, rank in (("mask", padding.mask, 2), ("offsets", padding.offsets, 1)):
            tensor = inputs.get(name)
            if name and (tensor is None or tensor.shape != (-1,) * rank or tensor.datatype == BYTES):
                msg = f"padding.{role} must name a numeric input of shape {[-1] * rank}, which {name!r} is not"
                raise ValueError(msg)
        if not self.request_inputs:
            msg = "mask and offsets leave no input for requests"
            raise ValueError(msg)
        is_open = [tensor for tensor in self.request_inputs if -1 in tensor.shape[1:]]
        if (padding.length_buckets or padding.mask) and not is_open:
            msg = "padding.length_buckets and padding.mask need an input with an open dimension behind the first"
            raise ValueError(msg)
        if padding.length_buckets and any(tensor.datatype == BYTES for tensor in is_open):
            msg = "padding.length_buckets cannot fill up BYTES"
            raise ValueError(msg)
        if padding.mask and not padding.length_buckets:
            msg = "padding.mask goes with padding.length_buckets"
            raise ValueError(msg)
        if padding.offsets and padding.batch:
            msg = "padding.offsets and padding.batch exclude each other: added rows would belong to no request"
            raise ValueError(msg)
        return self

    @property
    def request_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a request carries: all but those that the worker fills."""
        padding = self.batching.padding
        return tuple(tensor for tensor in self.inputs if tensor.name not in (padding.mask, padding.offsets))

    @property
    def artefact_name(self) -> str:
        """The artefact's file name; unless given, the file of a python handler or the backend's default."""
        if self.backend == "torch" and self.handler and not self.artefact:
            return "model.safetensors"
        if self.backend == "python" and self.handler and not self.artefact:
            return f"{self.handler.partition(':')[0].replace('.', '/')}.py"
        return self.artefact or default_artefacts[self.backend]

    @property
    def keeps_order(self) -> bool:
        """Whether requests that belong together run in the order of the log."""
        return self.batching.order == "per_key" or self.sequences is not None

    @property
    def max_queue_rows(self) -> int:
        """Rows queued in a worker before it pauses its partitions."""
        return self.batching.max_queue_rows or 8 * self.batching.max_batch_size


class WorkersSpec(Spec):
    """How many workers a deployment may have."""

    min: Annotated[int, Field(ge=0, le=10_000)] = 1
    max: Annotated[int, Field(ge=0, le=10_000)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> WorkersSpec:
        if self.min > self.max:
            msg = f"min {self.min} is above max {self.max}"
            raise ValueError(msg)
        return self


class DeviceSpec(Spec):
    """What one worker needs."""

    kind: Literal["cpu", "gpu", "any"] = "any"
    """`any` takes a GPU when the pool has one, else CPU."""
    compute: Annotated[int, Field(ge=1, le=100)] = 25
    """Percent of one GPU, or of one CPU core."""
    memory_mib: Annotated[int, Field(ge=1)] = 256
    mode: Literal["slice", "whole"] = "slice"
    fallback: Literal["none", "cpu"] = "none"


class TopicSpec(Spec):
    """The request topic of a deployment."""

    partitions: Annotated[int | None, Field(ge=1, le=10_000)] = None
    """By default four times workers.max, at least 8."""
    retention_ms: Annotated[int, Field(ge=60_000)] = 86_400_000
    lanes: bool = False
    """Whether requests of high and of low priority have topics of their own, so that none waits behind a backlog of
    another priority. Can be turned on and off while the model serves."""

    @model_serializer(mode="wrap", when_used="json")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Who does not know `lanes` refuses a registry that has it: it is written only where it is asked for."""
        found: dict[str, object] = handler(self)
        if not self.lanes:
            found.pop("lanes", None)
        return found


class DeploymentSpec(Spec):
    """One model version that should be served, or several that share the engines of their workers."""

    model: ModelName
    version: Version
    models: tuple[ModelKey, ...] = ()
    """In place of model and version: `name@version` of each model that the workers hold. The deployment goes by the
    first of them."""
    workers: WorkersSpec = WorkersSpec()
    device: DeviceSpec = DeviceSpec()
    topic: TopicSpec = TopicSpec()
    tenant: str = ""
    allow_code: bool = False
    """Whether a model whose artefact is code (python backend, TorchScript) may run here."""

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_first(cls, value: object) -> object:
        """A deployment of several models has the name of the first; one of a single model has no list."""
        models = value.get("models") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(models, list | tuple) or not models:
            return value
        first = ModelVersion.parse(_model_key(str(models[0])))
        if value.get("model", first.model) != first.model or value.get("version", first.version) != first.version:
            msg = "give either model and version, or models"
            raise ValueError(msg)
        return {**value, "model": first.model, "version": first.version, "models": models if len(models) > 1 else ()}

    @field_validator("models")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            msg = f"{Counter(value).most_common(1)[0][0]} stands twice in models"
            raise ValueError(msg)
        return value

    @property
    def key(self) -> ModelVersion:
        """What the deployment goes by: its model version, the first of several."""
        return ModelVersion(self.model, self.version)

    @property
    def keys(self) -> tuple[ModelVersion, ...]:
        """All model versions that its workers serve."""
        return tuple(map(ModelVersion.parse, self.models)) or (self.key,)

    @property
    def partitions(self) -> int:
        """Partitions of each request topic: enough that workers can be added without a partition for none."""
        return self.topic.partitions or max(8, 4 * self.workers.max)


class RouteSpec(Spec):
    """Which version answers requests that name none."""

    default: Version
    labels: dict[ModelName, Version] = {}  # noqa: RUF012 - pydantic copies defaults
    """Names for versions, which steps of pipelines may use: `digits:stable`."""


class FleetSpec(Spec):
    """`fleet.yaml`."""

    models: str = "./models"
    """Folder or URL of the model repository: <name>/<version>/model.yaml with artefacts beside it."""
    deployments: tuple[DeploymentSpec, ...] = ()
    routes: dict[ModelName, RouteSpec] = {}  # noqa: RUF012 - pydantic copies defaults
    pipelines: tuple[dict[str, Any] | str, ...] = ()
    """Pipelines, or files with one each; `contracts.pipelines` reads them."""

    @model_validator(mode="after")
    def _consistent(self) -> FleetSpec:
        keys = Counter(key for deployment in self.deployments for key in deployment.keys)
        twice = [str(key) for key, count in keys.items() if count > 1]
        if twice:
            msg = f"{twice[0]} is deployed twice; put its workers into one deployment"
            raise ValueError(msg)
        names = sorted({key.model for key in keys})
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                if collides(first, second):
                    msg = f"models {first} and {second} would share Kafka metrics; rename one of them"
                    raise ValueError(msg)
        return self


_S = TypeVar("_S", bound=Spec)


def parse_model(text: str, source: str) -> ModelSpec:
    """Read a model.yaml; `source` names it in errors. Raises ConfigurationError."""
    return _parse(ModelSpec, text, source)


def parse_fleet(text: str, source: str) -> FleetSpec:
    """Read a fleet.yaml; `source` names it in errors. Raises ConfigurationError."""
    return _parse(FleetSpec, text, source)


def _parse(kind: type[_S], text: str, source: str) -> _S:
    content, _ = load(text, source)
    if not isinstance(content, dict):
        msg = f"{source} must be a mapping with the fields of a {kind.__name__}"
        raise ConfigurationError(msg)
    try:
        return kind.model_validate(content)
    except ValidationError as exc:
        raise ConfigurationError(_describe(exc, source)) from exc


def _describe(exc: ValidationError, source: str) -> str:
    faults = [f"  {'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in exc.errors()]
    return "\n".join([f"{source} cannot be used:", *faults])
