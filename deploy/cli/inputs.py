"""What `headrace infer` sends and shows: arrays from arguments, files and JSON, and responses for people and scripts.

Pure but for reading the files that are named. A value is `@file.npy`, `@file` (an image, a document) where the model
takes BYTES, or JSON; numbers get the type that the model declares when the client makes tensors of them. A pattern,
`@folder/*.png`, and a name that is given several times are rows behind rows. JSON requests have the form of the Open
Inference Protocol (`{"inputs": [{"name", "datatype", "shape", "data"}]}`), or map names to nested lists.
"""

from __future__ import annotations

import base64
import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contracts.errors import ConfigurationError
from contracts.messages import Response
from contracts.pipelines import PipelineSpec
from contracts.specs import ModelSpec
from contracts.tensors import BYTES, Tensor, numpy_type

Arrays = dict[str, npt.ArrayLike]
_SHOWN_ELEMENTS = 1000

Asked = ModelSpec | PipelineSpec
"""What inputs are for."""


def parse_inputs(arguments: Sequence[str], spec: Asked) -> Arrays:
    """Inputs from `name=value` arguments; the name may be left out where the model has one input."""
    found: dict[str, list[npt.ArrayLike]] = {}
    for argument in arguments:
        name, value = _split(argument, spec)
        found.setdefault(name, []).extend(_values(value, name, _datatype(spec, name)))
    return {name: _joined(name, arrays) for name, arrays in found.items()}


def _joined(name: str, arrays: list[npt.ArrayLike]) -> npt.ArrayLike:
    """Rows behind rows."""
    if len(arrays) == 1:
        return arrays[0]
    try:
        return np.concatenate([np.asarray(array) for array in arrays])
    except ValueError as exc:
        msg = f"the values of {name} cannot be put one behind the other: {exc}"
        raise ConfigurationError(msg) from exc


def _split(argument: str, spec: Asked) -> tuple[str, str]:
    name, equals, value = argument.partition("=")
    if equals and name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        if name not in {tensor.name for tensor in spec.inputs}:
            msg = f"{spec.key} has no input {name!r}; it takes {', '.join(tensor.name for tensor in spec.inputs)}"
            raise ConfigurationError(msg)
        return name, value
    if len(spec.inputs) == 1:
        return spec.inputs[0].name, argument
    names = ", ".join(tensor.name for tensor in spec.inputs)
    msg = f"--input {argument[:40]}: say which input it is, name=value; {spec.key} takes {names}"
    raise ConfigurationError(msg)


def _datatype(spec: Asked, name: str) -> str | None:
    return next((tensor.datatype for tensor in spec.inputs if tensor.name == name), None)


def _values(text: str, name: str, datatype: str | None) -> list[npt.ArrayLike]:
    if text.startswith("@"):
        return [load_array(path, datatype) for path in _files(text[1:])]
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as exc:
        msg = f"the value of {name} is neither @file.npy nor JSON such as [[1, 2, 3]]: {exc}"
        raise ConfigurationError(msg) from exc
    return [as_array(value, name, datatype)]


def _files(name: str) -> list[Path]:
    """The file of that name, or all that a pattern fits, in the order of their names."""
    path = Path(name)
    if path.exists() or not glob.has_magic(name):
        return [path]
    found = sorted(path for path in map(Path, glob.glob(name)) if path.is_file())  # noqa: PTH207 - may be absolute
    if not found:
        msg = f"there is no file {name}"
        raise ConfigurationError(msg)
    return found


def as_array(value: Any, name: str, datatype: str | None) -> npt.ArrayLike:
    """Nested lists as an array of the model's type."""
    if datatype == BYTES:
        return np.array(value, dtype=object)
    try:
        made = np.array(value, dtype=None if datatype is None else numpy_type(datatype))
    except (TypeError, ValueError, KeyError, OverflowError) as exc:
        msg = f"the value of {name} cannot be made an array of {datatype}: {exc}"
        raise ConfigurationError(msg) from exc
    return _kept(made, np.asarray(value), f"the value of {name}", datatype)


def _kept(made: npt.NDArray[Any], given: npt.NDArray[Any], what: str, datatype: str | None) -> npt.NDArray[Any]:
    """What was made of numbers. Raises ConfigurationError when they are others as whole numbers of that type."""
    if made.dtype.kind in "iu" and given.dtype.kind in "fiu" and not np.array_equal(made, given):
        msg = f"{what} has numbers that {datatype} cannot hold"
        raise ConfigurationError(msg)
    return made


def load_array(path: Path, datatype: str | None) -> npt.ArrayLike:
    """An array from a .npy file; of BYTES, any other file is the one element itself.

    Real numbers are brought to the model's type, which is what a person means, unless that would make others of them.
    """
    if datatype == BYTES and path.suffix != ".npy":
        return _whole(path)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        msg = f"{path} cannot be read as a .npy file: {exc}"
        raise ConfigurationError(msg) from exc
    if not isinstance(array, np.ndarray):
        msg = f"{path} holds several arrays; save one of them with numpy.save"
        raise ConfigurationError(msg)
    if datatype not in (None, BYTES) and array.dtype.kind in "fiu":
        with np.errstate(invalid="ignore"):  # it is told below
            return _kept(array.astype(numpy_type(str(datatype))), array, str(path), datatype)
    return array


def _whole(path: Path) -> npt.ArrayLike:
    try:
        content = path.read_bytes()
    except OSError as exc:
        msg = f"{path} cannot be read: {exc}"
        raise ConfigurationError(msg) from exc
    array = np.empty(1, object)
    array[0] = content
    return array


def parse_json(text: str, spec: Asked) -> tuple[Arrays, dict[str, Any]]:
    """Inputs and parameters of a JSON request."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as exc:
        msg = f"the JSON input cannot be read: {exc}"
        raise ConfigurationError(msg) from exc
    if not isinstance(content, dict):
        msg = 'the JSON input must be an object: {"inputs": [{"name": …, "shape": […], "data": […]}]} or {name: [[…]]}'
        raise ConfigurationError(msg)
    if not isinstance(content.get("inputs"), list):
        return {name: as_array(value, name, _datatype(spec, name)) for name, value in content.items()}, {}
    arrays: Arrays = {}
    for entry in content["inputs"]:
        if not isinstance(entry, Mapping) or not {"name", "data"} <= entry.keys():
            msg = 'each of the JSON "inputs" needs "name" and "data", and "shape" when the data is flat'
            raise ConfigurationError(msg)
        name = str(entry["name"])
        array = np.asarray(as_array(entry["data"], name, entry.get("datatype") or _datatype(spec, name)))
        try:
            arrays[name] = array.reshape(entry["shape"]) if "shape" in entry else array
        except (TypeError, ValueError) as exc:
            msg = f"the data of {name} does not fit its shape: {exc}"
            raise ConfigurationError(msg) from exc
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        msg = 'the JSON "parameters" must be an object: {"parameters": {"k": 3}}'
        raise ConfigurationError(msg)
    return arrays, parameters


def response_json(response: Response) -> dict[str, Any]:
    """A response as JSON, in the terms of the Open Inference Protocol."""
    receipt = response.receipt
    error = response.error
    return {
        "id": response.id,
        "status": response.status.value,
        "model_name": response.model,
        "model_version": str(response.version),
        "outputs": [_tensor_json(tensor) for tensor in response.outputs],
        "error": None if error is None else {"message": error.message, "retryable": error.retryable},
        "parameters": response.parameters,
        "receipt": {field: getattr(receipt, field) for field in receipt.__struct_fields__},
    }


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    array = tensor.to_numpy().ravel()
    data = [_text(element) for element in array] if tensor.datatype == BYTES else array.tolist()
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}


def _text(element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return base64.b64encode(element).decode()


def response_text(response: Response, *, is_chained: bool = False) -> str:
    """A response for people: each output, then where the time went."""
    parts = outputs_text(response), receipt_text(response, is_chained=is_chained)
    return "\n".join(text for text in parts if text)


def outputs_text(response: Response) -> str:
    """Each output with its name, then the parameters."""
    lines = []
    for tensor in response.outputs:
        lines.append(f"{tensor.name}  {tensor.datatype} {list(tensor.shape)}")
        array = tensor.to_numpy()
        with np.printoptions(precision=4, suppress=True, threshold=_SHOWN_ELEMENTS, linewidth=100):
            lines.extend(f"  {line}" for line in str(array).splitlines())
    lines.extend(f"{name} = {value}" for name, value in response.parameters.items())
    return "\n".join(lines)


def receipt_text(response: Response, *, is_chained: bool = False) -> str:
    """The receipt in a sentence. That of a chained pipeline adds up the way to its answer, which has many workers."""
    receipt = response.receipt
    answered = f"{response.model}@{response.version} answered in {receipt.total_us / 1000:.1f} ms"
    parts = (
        ("queued", receipt.queued_us),
        ("batched", receipt.batched_us),
        ("computed", receipt.computed_us),
        ("returned", receipt.returned_us),
    )
    where = ", ".join(f"{name} {microseconds / 1000:.1f}" for name, microseconds in parts)
    if is_chained:
        return f"{answered} ({where}); `headrace trace {response.id}` shows its steps"
    return f"{answered} ({where}) by {receipt.worker} on {receipt.device}, in a batch of {receipt.batch_rows}"
