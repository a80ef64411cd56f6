"""The parts of `model.yaml` that say how a worker goes about a model: batches, padding, sequences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Spec(BaseModel):
    """The base of all specs: frozen, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PaddingSpec(Spec):
    """How batches are filled up to the sizes that a model is quick at. Results are cut back before they are sent."""

    batch: bool = False
    """Add rows up to the next of the batch sizes; they are computed and thrown away."""
    length_buckets: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Fill open dimensions of inputs up to one of these sizes, so that rows of different lengths share a batch. What is
    longer than the last stays as it is."""
    value: float = 0.0
    """What is filled in; empty for BYTES."""
    mask: str = ""
    """An input of the model, [-1, -1], that the worker fills: 1 where a row has an element, 0 where it was filled up.
    Requests leave it out."""
    offsets: str = ""
    """An input of the model, [-1], that the worker fills: the row at which each request of the batch begins, and the
    end of the last. For models that treat the rows of a request as one ragged sequence. Requests leave it out."""

    @field_validator("length_buckets")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


class BatchingSpec(Spec):
    """How requests are put together. What stands in Knobs can be changed while the model serves."""

    max_batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    """Rows (not requests) in a batch, at most."""
    max_request_rows: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Rows in a request, at most; by default max_batch_size. What is larger than a batch is run in parts."""
    preferred_batch_sizes: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = ()
    """Sizes that the model is quick at, instead of the usual buckets 1, 2, 4, 8, 16, 24, 32, 48, …; the largest is the
    largest batch."""
    slo_ms: Annotated[float | None, Field(gt=0, le=3_600_000)] = None
    """The latency that callers want, from taking a request to its result; says how large a batch need be at most."""
    max_batch_delay_ms: Annotated[float | None, Field(ge=0, le=60_000)] = None
    """How long a batch may wait for more rows while the engine is free. A ceiling, never a fixed delay; by
    default 0, which never waits."""
    max_queue_rows: Annotated[int | None, Field(ge=1)] = None
    """Rows queued in a worker, at most; by default eight times max_batch_size."""
    overflow: Literal["delay", "reject"] = "delay"
    """With a full queue: leave further requests in the log, or answer them OVERLOADED at once."""
    order: Literal["none", "per_key"] = "none"
    """`per_key`: requests with the same record key run one after the other, in the order of the log."""
    padding: PaddingSpec = PaddingSpec()
    batch_invariant: bool = False
    """Compute every batch with max_batch_size rows, filled up where there are fewer: libraries choose how to compute by
    the size of a batch, so only then does a row get the same result to the last bit whatever shared its batch."""

    @model_validator(mode="after")
    def _consistent(self) -> BatchingSpec:
        if self.batch_invariant and self.preferred_batch_sizes:
            msg = "batch_invariant knows one size of batches, max_batch_size: leave out preferred_batch_sizes"
            raise ValueError(msg)
        if self.batch_invariant and self.padding.offsets:
            msg = "padding.offsets and batch_invariant exclude each other: added rows would belong to no request"
            raise ValueError(msg)
        if self.preferred_batch_sizes and max(self.preferred_batch_sizes) > self.max_batch_size:
            msg = f"preferred_batch_sizes go beyond max_batch_size {self.max_batch_size}; raise it or leave them out"
            raise ValueError(msg)
        return self

    @property
    def delay_seconds(self) -> float:
        """How long a batch may wait for more rows while the engine is free."""
        return (self.max_batch_delay_ms or 0.0) / 1000


class SequencesSpec(Spec):
    """How a worker keeps the states of sequences."""

    max: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Sequences that one worker keeps at a time; one more is answered OVERLOADED."""
    idle_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """A sequence without a step for so long is forgotten."""


class OnnxSpec(Spec):
    """How ONNX Runtime runs a graph."""

    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """Which execution provider. `auto` is CUDA on a GPU and the CPU elsewhere; `tensorrt` is TensorRT where it is
    installed, else CUDA."""
    fp16: bool = False
    """Whether TensorRT may compute in half precision."""

    @model_validator(mode="after")
    def _consistent(self) -> OnnxSpec:
        if self.fp16 and self.provider != "tensorrt":
            msg = "fp16 is TensorRT's: write provider: tensorrt, or export the graph in half precision"
            raise ValueError(msg)
        return self


class TorchSpec(Spec):
    """How torch runs a program on a GPU."""

    graphs: bool = True
    """Whether batches of the padded sizes (padding.batch) are captured as CUDA graphs. A graph repeats what the first
    run did: turn it off for modules whose Python code decides by values, counts, or draws numbers itself."""
