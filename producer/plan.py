"""All that is known about sending to one model version, worked out once: topic, partitions, and what it takes. Pure.

The signature check costs a few comparisons per request. It is a courtesy: workers check again, since not every producer
is this client. Arrays are never converted silently, a float64 array for an FP32 input is refused; lists have no type of
their own and take the model's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contracts.codec import MAX_INLINE_BYTES, encode_request
from contracts.errors import InvalidRequest
from contracts.messages import Parameters
from contracts.names import ModelVersion
from contracts.partitioner import Partitioner
from contracts.specs import TensorSpec
from contracts.tensors import BYTES, Tensor, check_tensor, numpy_type
from producer.admission import check_size, check_tensor_bytes

Inputs = Mapping[str, npt.ArrayLike] | Sequence[Tensor]
"""Named arrays (or lists), or tensors that are ready to travel."""


class InputPlan(NamedTuple):
    """One input as the model takes it. `dtype` is None for BYTES, whose elements have no fixed size."""

    name: str
    datatype: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    tail: tuple[int, ...]


class ModelPlan:
    """How requests for one model version are made."""

    __slots__ = ("_by_name", "_count", "key", "lanes", "partitioner", "topic")

    def __init__(
        self, key: ModelVersion, topic: str, partitioner: Partitioner, inputs: Iterable[TensorSpec] | None
    ) -> None:
        """`inputs`: what it takes, None when that is not known."""
        self.key = key
        self.topic = topic
        self.partitioner = partitioner
        self.lanes: dict[str, tuple[str, Partitioner]] = {}
        """Where requests of other priorities go, if not to the same topic."""
        self._by_name = None if inputs is None else {tensor.name: _plan_input(tensor) for tensor in inputs}
        self._count = 0 if self._by_name is None else len(self._by_name)

    @property
    def topics(self) -> Mapping[str, Partitioner]:
        """Where requests may go."""
        return {self.topic: self.partitioner, **dict(self.lanes.values())}

    def place(self, priority: str) -> tuple[str, Partitioner]:
        """Where requests of one priority go."""
        return self.lanes.get(priority) or (self.topic, self.partitioner)

    def encode(self, inputs: Inputs, parameters: Parameters | None, limit: int = MAX_INLINE_BYTES) -> bytes:
        """The body of a request. Raises InvalidRequest when it does not fit the model, TooLarge when it is larger than
        the limit.
        """
        return self.pack(self.tensors(inputs, parameters, limit), parameters, limit)

    def tensors(self, inputs: Inputs, parameters: Parameters | None, limit: int | None) -> Sequence[Tensor]:
        """The inputs as they travel, copied. Raises as `encode`, though without a limit nothing is too large."""
        most = sys.maxsize if limit is None else limit
        # `dict` first: to ask an abstract class takes ten times as long.
        if isinstance(inputs, (dict, Mapping)):
            tensors: Sequence[Tensor] = self._from_arrays(inputs, most)
        else:
            tensors = self._from_tensors(inputs, most)
        if not len(tensors) == self._count == 1:  # one that is named and shaped as it must be cannot lack another
            self._check_together(tensors)
        if parameters:
            _check_parameters(parameters)
        return tensors

    @staticmethod
    def pack(tensors: Sequence[Tensor], parameters: Parameters | None, limit: int = MAX_INLINE_BYTES) -> bytes:
        """The body of a request with these tensors. Raises TooLarge."""
        body = encode_request(tensors, dict(parameters) if parameters else None)
        if len(body) > limit:
            check_size(len(body), limit=limit)
        return body

    def _from_arrays(self, inputs: Mapping[str, npt.ArrayLike], limit: int) -> list[Tensor]:
        plans = self._by_name
        if plans is None:
            found = [Tensor.from_numpy(name, value) for name, value in inputs.items()]
            check_tensor_bytes(sum(len(tensor.data) for tensor in found), limit)
            return found
        tensors, total = [], 0
        for name, value in inputs.items():
            plan = plans.get(name) or self._unknown(name)
            # `is` first: it nearly always is, and two types take far longer to compare.
            if type(value) is np.ndarray and (value.dtype is plan.dtype or value.dtype == plan.dtype):
                total += value.nbytes
                if total > limit:
                    check_tensor_bytes(total, limit)
                tensor = Tensor(name, plan.datatype, value.shape, memoryview(value.tobytes()))
            else:
                tensor = _from_other(plan, value, limit)
                total += len(tensor.data)
            if tensor.shape[1:] != plan.tail or not tensor.shape:
                self._check_shape(plan, tensor)
            tensors.append(tensor)
        return tensors

    def _from_tensors(self, inputs: Sequence[Tensor], limit: int) -> Sequence[Tensor]:
        check_tensor_bytes(sum(len(tensor.data) for tensor in inputs), limit)
        for tensor in inputs:
            fault = check_tensor(tensor)
            if fault:
                raise InvalidRequest(fault)
            if self._by_name is not None:
                plan = self._by_name.get(tensor.name) or self._unknown(tensor.name)
                _check_datatype(plan, tensor.datatype)
                self._check_shape(plan, tensor)
        return inputs

    def _unknown(self, name: str) -> InputPlan:
        known = ", ".join(self._by_name or ())
        msg = f"{self.key} has no input {name!r}; it takes {known}"
        raise InvalidRequest(msg)

    def _check_shape(self, plan: InputPlan, tensor: Tensor) -> None:
        shape = tensor.shape
        if shape[1:] == plan.tail and shape:
            return
        fits = len(shape) == len(plan.shape) and all(
            size in (-1, given) for size, given in zip(plan.shape, shape, strict=True)
        )
        if not fits:
            wanted = ["any" if size < 0 else size for size in plan.shape]
            msg = f"input {plan.name!r} of {self.key} has shape {list(shape)}; it must be {wanted}, rows first"
            raise InvalidRequest(msg)

    def _check_together(self, tensors: Sequence[Tensor]) -> None:
        known = self._by_name
        if known is not None and (len(tensors) != len(known) or len({tensor.name for tensor in tensors}) != len(known)):
            missing = [name for name in known if all(name != tensor.name for tensor in tensors)]
            what = f"lacks the inputs {', '.join(missing)}" if missing else "names an input twice"
            msg = f"the request for {self.key} {what}"
            raise InvalidRequest(msg)
        if not tensors:
            msg = "a request needs at least one input"
            raise InvalidRequest(msg)
        if len(tensors) > 1 and len({tensor.rows for tensor in tensors}) > 1:
            rows = {tensor.name: tensor.rows for tensor in tensors}
            msg = f"the inputs of one request must have equally many rows, not {rows}"
            raise InvalidRequest(msg)


def _check_parameters(parameters: Mapping[str, object]) -> None:
    for name, value in parameters.items():
        if not (value is None or isinstance(value, (str, int, float))):  # bool is an int
            msg = f"parameters are str, int, float or bool; {name!r} is a {type(value).__name__}"
            raise InvalidRequest(msg)


def _plan_input(spec: TensorSpec) -> InputPlan:
    dtype = None if spec.datatype == BYTES else numpy_type(spec.datatype)
    return InputPlan(spec.name, spec.datatype, dtype, spec.shape, spec.shape[1:])


def _from_other(plan: InputPlan, value: npt.ArrayLike, limit: int) -> Tensor:
    """A tensor from what is not simply an array of the right type: lists, strings, other types, other layouts."""
    if isinstance(value, np.ndarray):
        check_tensor_bytes(value.nbytes, limit)
        if plan.datatype == "BF16" and value.dtype == plan.dtype:  # raw bit patterns, whose own type reads UINT16
            return Tensor(plan.name, plan.datatype, value.shape, memoryview(value.tobytes()))
        tensor = Tensor.from_numpy(plan.name, value)
    else:
        try:
            array = np.asarray(value, dtype=None if isinstance(value, np.generic) else plan.dtype)
        except (TypeError, ValueError, OverflowError) as exc:
            msg = f"input {plan.name!r} cannot be made an array of {plan.datatype}: {exc}"
            raise InvalidRequest(msg) from exc
        tensor = Tensor.from_numpy(plan.name, array)
        if plan.datatype == "BF16":
            tensor = Tensor(plan.name, "BF16", tensor.shape, tensor.data)
    _check_datatype(plan, tensor.datatype)
    return tensor


def _check_datatype(plan: InputPlan, given: str) -> None:
    if given != plan.datatype:
        hint = "" if plan.dtype is None else f"; convert it with .astype(np.{plan.dtype.name})"
        msg = f"input {plan.name!r} is {given}, the model takes {plan.datatype}{hint}"
        raise InvalidRequest(msg)
