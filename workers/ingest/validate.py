"""Whether a request fits its model, before anything of it reaches a batch.

`Validator` is built once from a model's spec and checks each request against it: the set of tensors, their datatypes,
shapes and sizes, the rows they agree on, and finite numbers where the model asks for them. A fault is an
InvalidRequest that names tensor and remedy and quotes no values.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import msgspec
import numpy as np

from contracts.errors import InvalidRequest
from contracts.messages import Parameters, RequestBody, SequenceStep
from contracts.specs import ModelSpec, TensorSpec
from contracts.tensors import BYTES, Tensor, check_tensor, numpy_type, type_sizes
from workers.ingest.buckets import padded_tail

_floats = frozenset({"FP16", "FP32", "FP64"})


class Checked(msgspec.Struct, frozen=True, gc=False):
    """A request that fits: its tensors in the spec's order, its rows, and what it may share a batch with."""

    inputs: tuple[Tensor, ...]
    rows: int
    batch_key: Hashable
    is_remote: bool = False
    """Whether data is missing: `check_content` is still to come when it is there."""


class Validator:
    """Checks requests for one model version."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._names = tuple(tensor.name for tensor in spec.request_inputs)
        self._max_rows = spec.max_request_rows
        self._reject_nan = spec.nan == "reject"
        self._fixed = all(-1 not in tensor.shape[1:] for tensor in spec.request_inputs)
        self._expected = tuple((t, t.datatype, t.shape[1:], _fixed_row_bytes(t)) for t in spec.request_inputs)
        self._lengths = spec.batching.padding.length_buckets

    def check(self, body: RequestBody) -> Checked:
        """Return what the batcher needs; raises InvalidRequest."""
        inputs = self._in_order(body.inputs)
        rows, is_remote = inputs[0].rows, False
        for tensor, (spec, datatype, tail, row_bytes) in zip(inputs, self._expected, strict=True):
            # Nearly every tensor is exactly what fixed shapes promise; only others are asked what is wrong with them.
            if (
                row_bytes is None
                or tensor.datatype != datatype
                or tensor.shape != (rows, *tail)
                or len(tensor.data) != rows * row_bytes
            ):
                self._check_tensor(tensor, spec, rows)
                is_remote |= tensor.ref is not None
        if not 1 <= rows <= self._max_rows:
            raise InvalidRequest(self._misfit(rows))
        if self._reject_nan and not is_remote:
            self._check_finite(inputs)
        if self._fixed and not body.parameters:
            return Checked(inputs, rows, None, is_remote)
        shapes = tuple(tensor.shape[1:] for tensor in inputs)
        if self._lengths:
            tails = (expected[2] for expected in self._expected)
            shapes = tuple(padded_tail(tail, shape, self._lengths) for tail, shape in zip(tails, shapes, strict=True))
        return Checked(inputs, rows, (shapes, _parameters_key(body.parameters)), is_remote)

    def _misfit(self, rows: int) -> str:
        """Why a request with so many rows is none, and what to do instead."""
        most = self._max_rows
        takes = f"{rows} rows; {self._spec.key} takes {'1 row' if most == 1 else f'1 to {most}'} in a request"
        return f"{takes}: make a request of each row (headrace infer --per-row, client.map)" if rows > most else takes

    def check_content(self, inputs: tuple[Tensor, ...]) -> None:
        """The rest of `check` for a request whose data came later; raises InvalidRequest."""
        for tensor in inputs:
            fault = check_tensor(tensor)
            if fault:
                raise InvalidRequest(fault)
        if self._reject_nan:
            self._check_finite(inputs)

    def check_step(self, step: SequenceStep | None) -> None:
        """Raise InvalidRequest for a step of a sequence where there are none, or for none where there must be one."""
        if (step is None) != (self._spec.sequences is None):
            fault = "keeps no sequences" if step is not None else "takes requests as steps of a sequence only"
            msg = f"{self._spec.key} {fault}; see the header sequence_id"
            raise InvalidRequest(msg)

    def _in_order(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        names = (inputs[0].name,) if len(inputs) == 1 else tuple(tensor.name for tensor in inputs)
        if names == self._names:
            return inputs
        if sorted(names) != sorted(self._names):
            missing = [name for name in self._names if name not in names]
            unknown = [name[:64] for name in names if name not in self._names]
            msg = f"{self._spec.key} takes {list(self._names)}; missing {missing}, unknown or repeated {unknown}"
            raise InvalidRequest(msg)
        by_name = {tensor.name: tensor for tensor in inputs}
        return tuple(by_name[name] for name in self._names)

    def _check_tensor(self, tensor: Tensor, spec: TensorSpec, rows: int) -> None:
        shape = tensor.shape
        if tensor.datatype != spec.datatype:
            msg = f"tensor {spec.name!r} must be {spec.datatype}, not {tensor.datatype[:32]}"
            raise InvalidRequest(msg)
        if len(shape) != len(spec.shape) or (
            shape[1:] != spec.shape[1:]
            and any(want not in (-1, got) for want, got in zip(spec.shape[1:], shape[1:], strict=True))
        ):
            msg = f"tensor {spec.name!r} must have shape {list(spec.shape)}, not {list(shape)[:16]}"
            raise InvalidRequest(msg)
        if shape[0] != rows:
            msg = f"tensor {spec.name!r} has {shape[0]} rows, {self._names[0]!r} has {rows}"
            raise InvalidRequest(msg)
        fault = check_tensor(tensor)
        if fault:
            raise InvalidRequest(fault)

    def _check_finite(self, inputs: tuple[Tensor, ...]) -> None:
        for tensor in inputs:
            if (
                tensor.datatype in _floats
                and not np.isfinite(np.frombuffer(tensor.data, numpy_type(tensor.datatype))).all()
            ):
                msg = f"tensor {tensor.name!r} has NaN or infinite elements, which {self._spec.key} rejects"
                raise InvalidRequest(msg)


def _parameters_key(parameters: Parameters) -> Hashable:
    """What parameters have in common that a model cannot tell apart.

    As written, because Python takes 1, 1.0 and True for equal, 0.0 and -0.0 too, and NaN for unlike itself.
    """
    return tuple(sorted((name, repr(value)) for name, value in parameters.items()))


def _fixed_row_bytes(spec: TensorSpec) -> int | None:
    """Bytes of a row where the spec fixes them, None where the request decides."""
    if spec.datatype == BYTES or -1 in spec.shape[1:]:
        return None
    return math.prod(spec.shape[1:]) * type_sizes[spec.datatype]
