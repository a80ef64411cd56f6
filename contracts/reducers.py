"""Reducers: what a pipeline makes of several members' tensors without asking a model.

`reduce(name, members, options)` computes, `signature(name, members, options)` says at compile time what would come out
and refuses what cannot work. A member is what one branch contributed, tensors by name, rows first; `None` is a member
that is absent (skipped, or failed where the join may do without it). Absent members keep their place: `weights` and
`member` count all of them.

Everything is a pure function of its arguments, so that a join fired twice gives the same bytes: sums run in member
order in double precision, ties go to the lowest class or the first member, and what becomes of NaN is part of each
definition (`contracts.reducer_kernels`, one function for each name). No rows in, no rows out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contracts import reducer_kernels as kernels
from contracts.errors import ConfigurationError, InvalidRequest
from contracts.specs import TensorSpec
from contracts.tensors import BYTES, numpy_type, type_sizes

Array = npt.NDArray[Any]
Member = Mapping[str, Array]
MemberSpec = Mapping[str, TensorSpec]
Options = Mapping[str, Any]

LABELS, SCORES, PROBABILITIES, CONFIDENCE, IDS = "labels", "scores", "probabilities", "confidence", "ids"
_FLOATS: Final = ("FP16", "FP32", "FP64")
_LABEL_TYPES: Final = (BYTES, "BOOL", *(name for name in type_sizes if "INT" in name))

_kernels: dict[str, Callable[[list[kernels.Present], Options], dict[str, Array]]] = {
    "vote": kernels.vote,
    "soft_vote": kernels.soft_vote,
    "mean": kernels.mean,
    "weighted_mean": kernels.mean,
    "median": kernels.median,
    "max_confidence": kernels.max_confidence,
    "rank_fusion": kernels.rank_fusion,
    "concat": kernels.concat,
    "first_of": kernels.first_of,
    "stack": kernels.stack,
}
REDUCERS: Final = tuple(_kernels)

_known_options: dict[str, tuple[str, ...]] = {
    "vote": ("weights",),
    "soft_vote": ("weights",),
    "mean": ("nan",),
    "weighted_mean": ("weights", "nan"),
    "median": ("nan",),
    "max_confidence": (),
    "rank_fusion": ("weights", "k", "top"),
    "concat": ("axis",),
    "first_of": (),
    "stack": ("datatype",),
}


def reduce(name: str, members: Sequence[Member | None], options: Options | None = None) -> dict[str, Array]:
    """What the reducer makes of the members that are present; never changes or keeps their arrays.

    Raises InvalidRequest when the members do not fit together (rows, shapes, datatypes) or none is present, and
    ConfigurationError for an unknown reducer or option; a compiled plan holds neither.
    """
    chosen = options or {}
    _check_options(name, chosen, len(members))
    weights = chosen.get("weights") or [1.0] * len(members)
    present = [
        kernels.Present(index, float(weights[index]), member)
        for index, member in enumerate(members)
        if member is not None
    ]
    if not present:
        msg = f"{name}: none of the {len(members)} members is present"
        raise InvalidRequest(msg)
    if name == "stack" and len(present) < len(members):
        absent = next(index for index, member in enumerate(members) if member is None)
        msg = f"stack: member {absent} is absent, and a model's input has no column to leave out"
        raise InvalidRequest(msg)
    with np.errstate(all="ignore"):  # infinities and overflow are values here, defined by the kernels
        return _kernels[name](present, chosen)


def signature(name: str, members: Sequence[MemberSpec], options: Options | None = None) -> dict[str, TensorSpec]:
    """The tensors that `reduce` will return for members of these specs, all present.

    Raises ConfigurationError with the reason when the reducer cannot work on them.
    """
    chosen = options or {}
    _check_options(name, chosen, len(members))
    if not members or not members[0]:
        raise ConfigurationError(f"{name} needs at least one member with a tensor")
    names = list(members[0])
    for index, member in enumerate(members):
        if set(member) != set(names):
            raise ConfigurationError(f"{name}: member {index} has tensors {sorted(member)}, member 0 {sorted(names)}")
        foreign = [tensor for tensor in member if member[tensor].datatype == "BF16"]
        if foreign:
            raise ConfigurationError(f"{name}: {foreign[0]!r} is BF16, which reducers do not compute with; use FP32")
    return _signatures[name]({tensor: [member[tensor] for member in members] for tensor in names}, chosen)


Columns = Mapping[str, list[TensorSpec]]


def _sign_vote(columns: Columns, _: Options) -> dict[str, TensorSpec]:
    if set(columns) == {LABELS}:
        column = columns[LABELS]
        _demand("vote", LABELS, column, types=_LABEL_TYPES, ranks=(1,))
        datatype = _one_type("vote", LABELS, column)
    elif set(columns) == {SCORES}:
        _demand("vote", SCORES, columns[SCORES], types=_FLOATS, ranks=(2,))
        _merged_shape("vote", SCORES, columns[SCORES])
        datatype = "INT64"
    else:
        raise ConfigurationError(f"vote takes either {LABELS!r} or {SCORES!r}, not {sorted(columns)}")
    return {
        "label": _spec("label", datatype, (-1,)),
        "votes": _spec("votes", "FP64", (-1,)),
        "agreement": _spec("agreement", "FP64", (-1,)),
    }


def _sign_soft_vote(columns: Columns, _: Options) -> dict[str, TensorSpec]:
    if set(columns) != {PROBABILITIES}:
        raise ConfigurationError(f"soft_vote takes {PROBABILITIES!r} and nothing else, not {sorted(columns)}")
    column = columns[PROBABILITIES]
    _demand("soft_vote", PROBABILITIES, column, types=_FLOATS, ranks=(2,))
    datatype = _mean_type(column)
    return {
        PROBABILITIES: _spec(PROBABILITIES, datatype, _merged_shape("soft_vote", PROBABILITIES, column)),
        "label": _spec("label", "INT64", (-1,)),
        CONFIDENCE: _spec(CONFIDENCE, datatype, (-1,)),
    }


def _sign_mean(columns: Columns, _: Options) -> dict[str, TensorSpec]:
    for tensor, column in columns.items():
        _demand("a mean or median", tensor, column, types=tuple(type_sizes), ranks=())
    return {
        tensor: _spec(tensor, _mean_type(column), _merged_shape("a mean or median", tensor, column))
        for tensor, column in columns.items()
    }


def _sign_max_confidence(columns: Columns, _: Options) -> dict[str, TensorSpec]:
    what = "max_confidence"
    if CONFIDENCE not in columns and PROBABILITIES not in columns:
        raise ConfigurationError(f"{what} needs {CONFIDENCE!r} or {PROBABILITIES!r} to compare, not {sorted(columns)}")
    if "member" in columns:
        raise ConfigurationError(f"{what} returns 'member' itself; give that input another name")
    for tensor, ranks in ((CONFIDENCE, (1,)), (PROBABILITIES, (2,))):
        if tensor in columns:
            _demand(what, tensor, columns[tensor], types=_FLOATS, ranks=ranks)
    signed = {
        tensor: _spec(tensor, _one_type(what, tensor, column), _merged_shape(what, tensor, column))
        for tensor, column in columns.items()
    }
    if CONFIDENCE not in columns:
        signed[CONFIDENCE] = _spec(CONFIDENCE, signed[PROBABILITIES].datatype, (-1,))
    if PROBABILITIES in columns and "label" not in columns:
        signed["label"] = _spec("label", "INT64", (-1,))
    return {**signed, "member": _spec("member", "INT64", (-1,))}


def _sign_rank_fusion(columns: Columns, options: Options) -> dict[str, TensorSpec]:
    if set(columns) != {IDS}:
        raise ConfigurationError(f"rank_fusion takes {IDS!r} and nothing else, not {sorted(columns)}")
    column = columns[IDS]
    types = tuple(name for name in _LABEL_TYPES if name not in ("BOOL", "UINT64"))
    _demand("rank_fusion", IDS, column, types=types, ranks=(2,))
    is_text = [spec.datatype == BYTES for spec in column]
    if any(is_text) and not all(is_text):
        raise ConfigurationError("rank_fusion: ids are BYTES in some members and numbers in others")
    lengths = [spec.shape[1] for spec in column]
    top = options.get("top") or (-1 if -1 in lengths else max(lengths))
    return {
        IDS: _spec(IDS, BYTES if is_text[0] else "INT64", (-1, top)),
        SCORES: _spec(SCORES, "FP64", (-1, top)),
    }


def _sign_concat(columns: Columns, options: Options) -> dict[str, TensorSpec]:
    signed = {}
    for tensor, column in columns.items():
        rank, axis = len(column[0].shape), options.get("axis", 0)
        if not -rank <= axis < rank:
            raise ConfigurationError(f"concat: {tensor!r} has {rank} dimensions and none numbered {axis}")
        shape = _joined_shape("concat", tensor, column, axis % rank)
        signed[tensor] = _spec(tensor, _common_type("concat", tensor, column), shape)
    return signed


def _sign_first_of(columns: Columns, _: Options) -> dict[str, TensorSpec]:
    return {
        tensor: _spec(tensor, _one_type("first_of", tensor, column), _merged_shape("first_of", tensor, column))
        for tensor, column in columns.items()
    }


def _sign_stack(columns: Columns, options: Options) -> dict[str, TensorSpec]:
    signed, datatype = {}, options.get("datatype")
    for tensor, column in columns.items():
        wide = [_spec(tensor, spec.datatype, spec.shape if len(spec.shape) > 1 else (-1, 1)) for spec in column]
        if datatype and BYTES in {spec.datatype for spec in wide}:
            raise ConfigurationError(f"stack: {tensor!r} is BYTES and cannot become {datatype}")
        common = _common_type("stack", tensor, wide)
        signed[tensor] = _spec(tensor, datatype or common, _joined_shape("stack", tensor, wide, len(wide[0].shape) - 1))
    return signed


_signatures: dict[str, Callable[[Columns, Options], dict[str, TensorSpec]]] = {
    "vote": _sign_vote,
    "soft_vote": _sign_soft_vote,
    "mean": _sign_mean,
    "weighted_mean": _sign_mean,
    "median": _sign_mean,
    "max_confidence": _sign_max_confidence,
    "rank_fusion": _sign_rank_fusion,
    "concat": _sign_concat,
    "first_of": _sign_first_of,
    "stack": _sign_stack,
}


def _spec(name: str, datatype: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def _demand(
    what: str, tensor: str, column: list[TensorSpec], *, types: tuple[str, ...], ranks: tuple[int, ...]
) -> None:
    for index, spec in enumerate(column):
        if spec.datatype not in types:
            msg = f"{what}: {tensor!r} of member {index} is {spec.datatype}; it takes {', '.join(types)}"
            raise ConfigurationError(msg)
        if ranks and len(spec.shape) not in ranks:
            msg = f"{what}: {tensor!r} of member {index} has shape {list(spec.shape)}; it takes {ranks[0]} dimensions"
            raise ConfigurationError(msg)


def _one_type(what: str, tensor: str, column: list[TensorSpec]) -> str:
    for index, spec in enumerate(column):
        if spec.datatype != column[0].datatype:
            msg = f"{what}: {tensor!r} is {column[0].datatype} in member 0 and {spec.datatype} in member {index}"
            raise ConfigurationError(msg)
    return column[0].datatype


def _common_type(what: str, tensor: str, column: list[TensorSpec]) -> str:
    """The one datatype, or that of numbers which holds them all (numpy's promotion)."""
    types = {spec.datatype for spec in column}
    if len(types) == 1:
        return column[0].datatype
    if BYTES in types:
        raise ConfigurationError(f"{what}: {tensor!r} is BYTES in some members and numbers in others")
    promoted = np.result_type(*(numpy_type(name) for name in types))
    return next(name for name in type_sizes if name != "BF16" and numpy_type(name) == promoted)


def _mean_type(column: list[TensorSpec]) -> str:
    """FP64 unless all are floating; then the widest of them."""
    types = {spec.datatype for spec in column}
    return max(types, key=_FLOATS.index) if types <= set(_FLOATS) else "FP64"


def _merged_shape(what: str, tensor: str, column: list[TensorSpec]) -> tuple[int, ...]:
    return _joined_shape(what, tensor, column, None)


def _joined_shape(what: str, tensor: str, column: list[TensorSpec], axis: int | None) -> tuple[int, ...]:
    """One shape for all: sizes must agree where both are known, except along `axis`, where they add up."""
    first, *others = (spec.shape for spec in column)
    sizes = list(first)
    for index, shape in enumerate(others, start=1):
        fits = len(shape) == len(sizes) and all(
            number == axis or -1 in (a, b) or a == b for number, (a, b) in enumerate(zip(sizes, shape, strict=True))
        )
        if not fits:
            msg = f"{what}: {tensor!r} has shape {list(first)} in member 0 and {list(shape)} in member {index}"
            raise ConfigurationError(msg)
        for number, size in enumerate(shape):
            if number == axis:
                sizes[number] = -1 if -1 in (sizes[number], size) else sizes[number] + size
            elif sizes[number] == -1:
                sizes[number] = size
    return (-1, *sizes[1:])


def _check_options(name: str, options: Options, members: int) -> None:
    if name not in _kernels:
        raise ConfigurationError(f"unknown reducer {name!r}; there are {', '.join(REDUCERS)}")
    for option in options:
        if option not in _known_options[name]:
            known = ", ".join(_known_options[name]) or "none"
            raise ConfigurationError(f"{name} has no option {option!r}; it has: {known}")
    if options.get("weights") is not None or name == "weighted_mean":
        _check_weights(name, options.get("weights"), members)
    if options.get("nan", "propagate") not in ("propagate", "ignore"):
        raise ConfigurationError(f"{name}: nan is 'propagate' or 'ignore', not {options['nan']!r}")
    for option in ("k", "top"):
        if option in options and (type(options[option]) is not int or options[option] < 1):
            raise ConfigurationError(f"{name}: {option} is a whole number from 1, not {options[option]!r}")
    if type(options.get("axis", 0)) is not int:
        raise ConfigurationError(f"{name}: axis is a whole number, not {options['axis']!r}")
    if options.get("datatype") is not None and options["datatype"] not in _FLOATS + _LABEL_TYPES[1:]:
        raise ConfigurationError(f"{name}: unknown datatype {options['datatype']!r} for numbers")


def _check_weights(name: str, weights: object, members: int) -> None:
    if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != members:
        raise ConfigurationError(f"{name}: weights must list one number for each of the {members} members")
    numbers = [weight for weight in weights if isinstance(weight, int | float) and not isinstance(weight, bool)]
    if len(numbers) != members or not all(math.isfinite(weight) and weight >= 0 for weight in numbers):
        raise ConfigurationError(f"{name}: weights are finite numbers from 0, not {list(weights)}")
    if not any(numbers):
        raise ConfigurationError(f"{name}: at least one weight must be above 0")
