"""How steps of a pipeline say where their inputs come from, and which model they ask."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from contracts.errors import ConfigurationError
from contracts.names import ModelVersion, check_model_name
from contracts.specs import Spec
from contracts.tensors import DATATYPES

STEP_PATTERN: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
RESERVED: Final = frozenset({"input", "output", "row", "turn", "map", "yield"})
_STEP = re.compile(STEP_PATTERN)
_SOURCE = re.compile(rf"({STEP_PATTERN})\.(.{{1,128}})")
_LABEL = re.compile(r"[a-z][a-z0-9._-]{0,63}")


class ConstantSpec(Spec):
    """A tensor that stands in the spec; one with a single row is repeated to the rows of the other inputs."""

    const: Any
    """Numbers, booleans or strings; lists of lists for more dimensions, rows first."""
    datatype: str

    @field_validator("datatype")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DATATYPES or value == "BF16":
            msg = f"unknown datatype for a constant; use one of {', '.join(set(DATATYPES) - {'BF16'})}"
            raise ValueError(msg)
        return value


def _source(text: str) -> str:
    if _SOURCE.fullmatch(text) is None:
        msg = f"{text!r} is no source: write step.tensor, for example input.image"
        raise ValueError(msg)
    return text


def _source_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "<source>"
    if isinstance(value, (dict, ConstantSpec)):
        return "<constant>"
    return "<list>" if isinstance(value, (list, tuple)) else None


_WRITE = "write step.tensor, a constant {const: …, datatype: …} or a list of them"
SourceText = Annotated[str, AfterValidator(_source)]
SourceSpec = Annotated[
    Annotated[SourceText, Tag("<source>")] | Annotated[ConstantSpec, Tag("<constant>")],
    Discriminator(_source_tag, custom_error_type="source", custom_error_message=_WRITE),
]
Alternatives = Annotated[
    Annotated[SourceText, Tag("<source>")]
    | Annotated[ConstantSpec, Tag("<constant>")]
    | Annotated[tuple[SourceSpec, ...], Field(min_length=1), Tag("<list>")],
    Discriminator(_source_tag, custom_error_type="source", custom_error_message=_WRITE),
]
"""One source, or several of which the first that is present counts."""
Members = Annotated[
    Annotated[SourceText, Tag("<source>")]
    | Annotated[ConstantSpec, Tag("<constant>")]
    | Annotated[tuple[Alternatives, ...], Field(min_length=1), Tag("<list>")],
    Discriminator(_source_tag, custom_error_type="source", custom_error_message=_WRITE),
]
"""One source for all members of a reducer, or one (or a list of alternatives) for each."""
Sources = Annotated[dict[str, Alternatives], Field(min_length=1)]


class ModelRef(NamedTuple):
    """A model or a pipeline as a step names it: `name`, `name@version` or `name:label`."""

    name: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@{self.version}"
        return f"{self.name}:{self.label}" if self.label is not None else self.name

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a reference; raises ConfigurationError when it is none."""
        if "@" in text:
            key = ModelVersion.parse(text)
            return cls(key.model, key.version)
        name, colon, label = text.partition(":")
        check_model_name(name)
        if colon and _LABEL.fullmatch(label) is None:
            msg = f"{text!r}: {label!r} is no label; write lower-case letters, digits, '.', '_' or '-'"
            raise ConfigurationError(msg)
        return cls(name, None, label if colon else None)


def _reference(text: str) -> str:
    try:
        return str(ModelRef.parse(text))
    except ConfigurationError as exc:
        raise ValueError(str(exc)) from exc


Reference = Annotated[str, AfterValidator(_reference)]


def is_step_name(text: str) -> bool:
    """Whether a step may have this name."""
    return _STEP.fullmatch(text) is not None and text not in RESERVED


def split_source(text: str) -> tuple[str, str]:
    """Step and tensor of a source."""
    step, _, tensor = text.partition(".")
    return step, tensor
