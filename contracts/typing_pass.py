"""Types and shapes of a pipeline's tensors, as far as they are declared, from the inputs to the outputs.

A size of -1 fits every size. A tensor whose producer is not known has no type and fits everywhere; so it is the run
that finds what cannot be found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from contracts import reducers
from contracts.drafts import Draft, Fault, Input
from contracts.errors import HeadraceError
from contracts.names import ModelVersion
from contracts.plans import INPUT, Constant, Source
from contracts.rows import joined_shape, row_shape
from contracts.specs import TensorSpec


class Signature(NamedTuple):
    """The tensors that a model takes and returns, and whether it returns them in parts."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    streams: bool = False


class Types:
    """What is known about the tensors of the nodes so far."""

    def __init__(self, inputs: Mapping[str, TensorSpec]) -> None:
        self.inputs = inputs
        self._outputs: dict[str, Mapping[str, TensorSpec | None] | None] = {INPUT: inputs}

    def declare(self, step: str, outputs: Mapping[str, TensorSpec | None] | None) -> None:
        """Say what a node returns; None when nothing is known about it."""
        self._outputs[step] = outputs

    def known(self, step: str) -> Mapping[str, TensorSpec | None] | None:
        """The outputs of a node, None when they are not known."""
        return self._outputs.get(step)

    def of(self, source: Source | Constant) -> TensorSpec | None:
        """The type of a source, None when it is not known."""
        if isinstance(source, Constant):
            return TensorSpec(name="constant", datatype=source.datatype, shape=(-1, *source.shape[1:]))
        return (self._outputs.get(source.step) or {}).get(source.tensor)

    def first(self, alternatives: Iterable[Source | Constant]) -> TensorSpec | None:
        """The type of the first alternative that has one."""
        return next((found for each in alternatives if (found := self.of(each)) is not None), None)


def check_types(
    drafts: Sequence[Draft], types: Types, signature_of: Callable[[ModelVersion], Signature | None]
) -> list[Fault]:
    """Check every node in order, and note in `types` what it returns."""
    faults: list[Fault] = []
    for draft in drafts:
        faults += _check_sources(draft, types)
        match draft.kind:
            case "model":
                faults += _check_model(draft, types, signature_of)
            case "reduce":
                faults += _check_reducer(draft, types)
            case "map" | "yield":
                faults += _check_alternatives(draft, types)
                found = {entry.name: types.first(entry.alternatives) for entry in draft.members[0]}
                axis = draft.step.map.axis if draft.kind == "map" else 0
                faults += _check_axis(draft, found, axis)
                types.declare(draft.name, _reshaped(found, axis, row_shape))
            case "gather":
                rows = types.known(f"{draft.name}/yield") or {}
                types.declare(draft.name, _reshaped(rows, draft.step.map.axis, joined_shape))
            case _:
                faults += _check_alternatives(draft, types)
    return faults


def _check_axis(draft: Draft, found: Mapping[str, TensorSpec | None], axis: int) -> list[Fault]:
    return [
        Fault(draft.path, f"{name!r} is {_text(spec)} and has no axis {axis} to go over")
        for name, spec in found.items()
        if spec is not None and len(spec.shape) <= axis
    ]


def _reshaped(
    found: Mapping[str, TensorSpec | None], axis: int, shape_of: Callable[[tuple[int, ...], int], tuple[int, ...]]
) -> dict[str, TensorSpec | None]:
    return {
        name: None if spec is None else spec.model_copy(update={"name": name, "shape": shape_of(spec.shape, axis)})
        for name, spec in found.items()
    }


def _check_sources(draft: Draft, types: Types) -> list[Fault]:
    """Tensors that the steps they are taken from do not return."""
    faults = []
    places = [(entry.alternatives, entry.path) for member in draft.members for entry in member]
    places += [(test.alternatives, test.path) for test in draft.tests]
    for alternatives, path in places:
        for source in alternatives:
            known = types.known(source.step) if isinstance(source, Source) else None
            if isinstance(source, Source) and known is not None and source.tensor not in known:
                faults.append(Fault(path, f"{source.step} has no output {source.tensor!r}; it has {', '.join(known)}"))
    for test in draft.tests:
        found = types.first(test.alternatives)
        if found is not None and (found.datatype == "BYTES") != isinstance(test.value, str) and test.value is not None:
            faults.append(Fault(test.path, f"{test.op} {test.value!r} cannot be asked of {found.datatype}"))
    return faults


def _check_model(draft: Draft, types: Types, signature_of: Callable[[ModelVersion], Signature | None]) -> list[Fault]:
    try:
        signature = signature_of(draft.model) if draft.model is not None else None
    except HeadraceError as exc:
        types.declare(draft.name, None)
        return [Fault(draft.path, str(exc))]
    if signature is None:
        types.declare(draft.name, None)
        return _check_alternatives(draft, types)
    types.declare(draft.name, {tensor.name: tensor for tensor in signature.outputs})
    wanted = {tensor.name: tensor for tensor in signature.inputs}
    given = {entry.name: entry for entry in draft.members[0]}
    takes = f"it takes {', '.join(wanted)}"
    faults = [
        Fault(entry.path, f"{draft.model} has no input {name!r}; {takes}")
        for name, entry in given.items()
        if name not in wanted
    ]
    faults += [
        Fault(draft.path, f"{draft.model} needs the input {name!r}; {takes}") for name in wanted if name not in given
    ]
    for name in wanted.keys() & given.keys():
        faults += _fits(given[name], wanted[name], f"input {name!r} of {draft.model}", types)
    return faults


def _fits(entry: Input, wanted: TensorSpec, what: str, types: Types) -> list[Fault]:
    faults = []
    for source in entry.alternatives:
        found = types.of(source)
        if found is not None and not _compatible(found, wanted):
            name = "the constant" if isinstance(source, Constant) else source.key
            faults.append(Fault(entry.path, f"{name} is {_text(found)}, but {what} is {_text(wanted)}"))
    return faults


def _compatible(first: TensorSpec, second: TensorSpec) -> bool:
    return (
        first.datatype == second.datatype
        and len(first.shape) == len(second.shape)
        and all(-1 in sizes or sizes[0] == sizes[1] for sizes in zip(first.shape, second.shape, strict=True))
    )


def _text(spec: TensorSpec) -> str:
    return f"{spec.datatype} [{', '.join('any' if size < 0 else str(size) for size in spec.shape)}]"


def _check_alternatives(draft: Draft, types: Types) -> list[Fault]:
    """Alternatives that could not stand for each other."""
    faults = []
    for member in draft.members:
        for entry in member:
            first = types.first(entry.alternatives)
            if first is not None and len(entry.alternatives) > 1:
                faults += _fits(entry, first, f"another alternative of {entry.name!r}", types)
    return faults


def _check_reducer(draft: Draft, types: Types) -> list[Fault]:
    faults = _check_alternatives(draft, types)
    name = draft.step.reduce
    if name not in reducers.REDUCERS:
        types.declare(draft.name, None)
        known = ", ".join(reducers.REDUCERS)
        return [*faults, Fault((*draft.path, "reduce"), f"there is no reducer {name!r}; there are {known}")]
    members: list[dict[str, TensorSpec]] = []
    for member in draft.members:
        found = {entry.name: types.first(entry.alternatives) for entry in member}
        if any(spec is None for spec in found.values()):
            types.declare(draft.name, None)
            return faults
        members.append({key: spec.model_copy(update={"name": key}) for key, spec in found.items() if spec is not None})
    try:
        types.declare(draft.name, dict(reducers.signature(name, members, draft.step.options)))
    except (HeadraceError, ValueError, TypeError) as exc:
        types.declare(draft.name, None)
        faults.append(Fault(draft.path, str(exc)))
    return faults
