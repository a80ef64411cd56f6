"""Conditions of pipelines: a yes or no about one tensor, with every operator defined for NaN and for no rows.

`max_at_least v`: in every row, the greatest value is at least v. A NaN in a row is never at least anything, so a model
that answers NaN counts as not confident. `max_below` is the exact opposite.

`equals`, `less`, `less_equal`, `greater`, `greater_equal` hold when every element does (NaN compares false);
`not_equals` is the opposite of `equals`. BYTES are compared as text, with `equals` and `not_equals` only. `empty` and
`not_empty` ask for elements and take no value. Of a tensor without elements, everything holds of every element.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contracts.errors import InvalidRequest

Operand = float | int | bool | str | None

OPERATORS: Final = (
    "max_below",
    "max_at_least",
    "equals",
    "not_equals",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "empty",
    "not_empty",
)
_OPPOSITES: Final = {"max_below": "max_at_least", "not_equals": "equals", "not_empty": "empty"}
_COMPARISONS: Final = {
    "equals": np.equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}


def check_operator(op: str, value: object) -> None:
    """Raise ValueError when there is no such operator or it does not go with the value."""
    if op not in OPERATORS:
        msg = f"unknown operator {op!r}; use one of {', '.join(OPERATORS)}"
        raise ValueError(msg)
    wants = op not in ("empty", "not_empty")
    if wants != (value is not None):
        msg = f"{op} needs a value" if wants else f"{op} takes no value"
        raise ValueError(msg)
    if isinstance(value, str) and op not in ("equals", "not_equals"):
        msg = f"{op} compares with a number"
        raise ValueError(msg)


def holds(array: npt.NDArray[Any], op: str, value: Operand) -> bool:
    """Whether the condition holds of the tensor. Raises InvalidRequest where the two cannot be compared."""
    if op in _OPPOSITES:
        return not holds(array, _OPPOSITES[op], value)
    if op == "empty":
        return array.size == 0
    if (array.dtype == object) != isinstance(value, str):
        msg = f"{op} cannot compare {'BYTES' if array.dtype == object else array.dtype} with {value!r}"
        raise InvalidRequest(msg)
    if array.size == 0:
        return True
    if isinstance(value, str):
        return all(element == value.encode() for element in array.ravel())
    if op == "max_at_least":
        rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
        return value is not None and bool((rows.max(axis=1) >= value).all())  # the maximum of a row with NaN is NaN
    return value is not None and bool(_COMPARISONS[op](array, value).all())
