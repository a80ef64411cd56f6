"""From a spec to a plan: versions pinned, steps laid out flat, names, types and shapes checked, nodes placed.

Everything that can be known to go wrong is found here, all of it at once and each with its path in the spec, so that a
line can be shown. What cannot be known, such as the tensors of a model that is not registered yet, is left to the run.

The plan is a function of its arguments alone: the order of keys, comments or the host do not change its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from contracts import pipelines as spec
from contracts.constants import constant
from contracts.drafts import Draft, Fault, Input
from contracts.errors import ConfigurationError
from contracts.expand import Expansion, Pin, PipelineOf
from contracts.names import ModelVersion
from contracts.ordering import in_order, without_unused
from contracts.placement import Place, Step, place
from contracts.plans import (
    INPUT,
    PARAMETERS,
    Binding,
    Condition,
    Constant,
    Declared,
    Guard,
    Member,
    Node,
    OnError,
    Plan,
    Policy,
    Source,
)
from contracts.specs import ModelSpec
from contracts.typing_pass import Signature, Types, check_types
from contracts.yaml_lines import Lines

SignatureOf = Callable[[ModelVersion], Signature | None]
"""The tensors of a model version; None when it is not known, which leaves them unchecked."""


class Compiled(NamedTuple):
    """A plan, or None when there are faults that are more than warnings."""

    plan: Plan | None
    faults: tuple[Fault, ...]


def no_pipelines(version: ModelVersion) -> spec.PipelineSpec:
    """A `pipeline_of` for pipelines without nested ones."""
    raise ConfigurationError(f"there is no pipeline {version}")


def signature_of_spec(model: ModelSpec) -> Signature:
    """What requests to a model bring and get."""
    return Signature(model.request_inputs, model.outputs, model.streaming)


def compile_plan(
    pipeline: spec.PipelineSpec,
    *,
    pin: Pin,
    signature_of: SignatureOf,
    pipeline_of: PipelineOf = no_pipelines,
    partitions: int | None = None,
) -> Plan:
    """The plan of a pipeline. Raises ConfigurationError with everything that is wrong.

    `partitions`: those that the joins topic has; by default what the spec asks for.
    """
    plan, faults = check_pipeline(
        pipeline, pin=pin, signature_of=signature_of, pipeline_of=pipeline_of, partitions=partitions
    )
    if plan is None:
        raise ConfigurationError(describe(faults, f"pipeline {pipeline.key}"))
    return plan


def check_pipeline(
    pipeline: spec.PipelineSpec,
    *,
    pin: Pin,
    signature_of: SignatureOf,
    pipeline_of: PipelineOf = no_pipelines,
    partitions: int | None = None,
) -> Compiled:
    """The plan of a pipeline with all faults and warnings."""
    expansion = Expansion(pipeline, pin, pipeline_of)
    faults = list(expansion.faults)
    drafts, more = in_order(expansion.drafts)
    faults += more
    if any(not fault.is_warning for fault in faults):
        return Compiled(None, tuple(faults))
    types = Types({tensor.name: tensor for tensor in pipeline.inputs})
    faults += check_types(drafts, types, signature_of)
    faults += _check_steps(drafts)
    used, unused = without_unused(drafts)
    faults += unused
    if any(not fault.is_warning for fault in faults):
        return Compiled(None, tuple(faults))
    plan = Plan(
        pipeline=pipeline.key,
        nodes=tuple(_nodes(used, types)),
        partitions=pipeline.partitions if partitions is None else partitions,
        is_fused=pipeline.fused,
        open_jobs=pipeline.limits.open_jobs,
    )
    return Compiled(plan, (*faults, *_collected(used, plan, signature_of)))


def _collected(drafts: Sequence[Draft], plan: Plan, signature_of: SignatureOf) -> list[Fault]:
    """Warnings of models that stream where nobody can take parts."""
    found: list[Fault] = []
    for draft in drafts:
        signature = None if draft.model is None else signature_of(draft.model)
        if signature is None or not signature.streams or (plan.tail is not None and plan.tail.node == draft.name):
            continue
        where = "it is asked for each row of a map" if draft.scope else "other steps or a join need what it answers"
        text = f"{draft.model} streams, but here its parts are collected, since {where}; {_STREAMS_LAST}"
        found.append(Fault(draft.path, text, is_warning=True))
    return list(dict.fromkeys(found))  # the turns of a loop are one step of the spec


_STREAMS_LAST = "callers get parts only from the last step, with nothing but reducers behind it"


def describe(faults: Sequence[Fault], source: str, lines: Lines | None = None) -> str:
    """Faults as text, in the order of their lines: `source:line: step: what is wrong`."""
    found = []
    for fault in faults:
        line = lines.at(fault.path) if lines is not None else None
        place = f"{source}:{line}" if line is not None else source
        where = ".".join(map(str, fault.path))
        kind = "warning: " if fault.is_warning else ""
        found.append((line or 0, f"{place}: {kind}{where}: {fault.message}" if where else f"{place}: {fault.message}"))
    return "\n".join(text for _, text in sorted(found, key=lambda entry: entry[0]))


# --- relations within a step ------------------------------------------------------------------------------------------


def _check_steps(drafts: Sequence[Draft]) -> list[Fault]:
    faults = []
    for draft in drafts:
        require, quorum = _required(draft)
        members = len(draft.members)
        if draft.kind == "reduce" and quorum > members:
            faults.append(Fault(draft.path, f"a quorum of {quorum} cannot be reached by {members} members"))
        if draft.kind in ("reduce", "gather") and draft.step.timeout_ms is not None and require == "all":
            faults.append(Fault(draft.path, "timeout_ms goes with a `require` other than all"))
        if isinstance(getattr(draft.step, "on_error", None), spec.DefaultSpec) and draft.kind in _OWNERS:
            faults += _check_default(draft)
    return faults


_OWNERS = ("model", "reduce", "gather")


def _check_default(draft: Draft) -> list[Fault]:
    faults = []
    for name, default in draft.step.on_error.default.items():
        try:
            constant(default.const, default.datatype)
        except ValueError as exc:
            faults.append(Fault((*draft.path, "on_error", "default", name), str(exc)))
    return faults


def _required(draft: Draft) -> tuple[Policy, int]:
    require = getattr(draft.step, "require", "all") if draft.kind in ("reduce", "gather") else "all"
    if isinstance(require, spec.QuorumSpec):
        return "quorum", require.quorum
    if require == "first_of":
        return "first_of", 1
    return ("best_effort" if require == "best_effort" else "all"), 0


# --- nodes ------------------------------------------------------------------------------------------------------------


def _nodes(drafts: Sequence[Draft], types: Types) -> list[Node]:
    used: dict[str, set[str]] = {draft.name: set() for draft in drafts}
    members = {draft.name: _reads(draft) for draft in drafts}
    for sources in members.values():
        for source in sources:
            used[source.step].add(source.tensor)
    places = place([_step(draft, members[draft.name]) for draft in drafts])
    return [_node(draft, places[draft.name], tuple(sorted(used[draft.name])), types) for draft in drafts]


def _reads(draft: Draft) -> frozenset[Source]:
    passes = draft.kind == "model" and draft.parameters == "pass"
    gathers = draft.kind == "gather"
    own = {Source(f"{draft.name}/yield", name) for name in draft.step.outputs} if gathers else set()
    return frozenset(draft.sources) | own | ({Source(INPUT, PARAMETERS)} if passes else frozenset())


def _step(draft: Draft, reads: frozenset[Source]) -> Step:
    require, quorum = _required(draft)
    alternatives = any(len(entry.alternatives) > 1 for member in draft.members for entry in member)
    voters = {
        each.step
        for member in draft.members
        for entry in member
        for each in entry.alternatives
        if isinstance(each, Source)
    }
    is_harmless = draft.kind == "gather" and draft.step.on_error != "fail"
    return Step(
        draft.name,
        draft.scope,
        reads,
        is_gather=draft.kind == "gather",
        can_go_early=require != "all",
        must_join=draft.kind == "reduce" and len(voters) > 1 and (quorum > 0 or draft.step.timeout_ms is not None),
        has_alternatives=alternatives or bool(draft.gates) or is_harmless,
    )


def _node(draft: Draft, placed: Place, outputs: tuple[str, ...], types: Types) -> Node:
    require, quorum = _required(draft)
    step = draft.step
    is_own = draft.kind in _OWNERS
    found = getattr(step, "on_error", "fail") if is_own else "fail"
    default = _default(found) if isinstance(found, spec.DefaultSpec) else ()
    on_error: OnError = "default" if default else "skip" if found == "skip" else "fail"
    return Node(
        name=draft.name,
        kind=draft.kind,
        scope=draft.scope,
        host=placed.host,
        branches=placed.branches,
        members=tuple(_member(member) for member in draft.members),
        when=tuple(
            Guard(tuple(Condition(test.alternatives, test.op, test.value) for test in gate.tests), gate.is_negated)
            for gate in draft.gates
        ),
        on_error=on_error,
        default=default,
        require=require,
        quorum=quorum,
        is_fail_fast=placed.is_fail_fast,
        timeout_ms=step.timeout_ms if is_own else None,
        retries=step.retries if draft.kind == "model" else 0,
        model=draft.model,
        parameters=_parameters(draft),
        reducer=step.reduce if draft.kind == "reduce" else "",
        options=_plain(step.options) if draft.kind == "reduce" else {},
        outputs=outputs,
        declared=_declared(draft, types),
        keep=placed.keep if draft.kind == "model" else (),
        brings=placed.brings,
        max_rows=step.map.max_rows if draft.kind == "map" else 0,
        axis=step.map.axis if draft.kind in ("map", "gather") else 0,
    )


def _member(inputs: Sequence[Input]) -> Member:
    inputs = sorted(inputs, key=lambda entry: entry.name)  # the order of keys is nobody's intention
    sources = (each for entry in inputs for each in entry.alternatives if isinstance(each, Source))
    name = next((source.step for source in sources), "constant")
    return Member(tuple(Binding(entry.name, entry.alternatives) for entry in inputs), name)


def _default(on_error: spec.DefaultSpec) -> tuple[tuple[str, Constant], ...]:
    return tuple((name, constant(each.const, each.datatype)) for name, each in sorted(on_error.default.items()))


def _parameters(draft: Draft) -> Any:
    if draft.kind != "model":
        return None
    return None if draft.parameters == "pass" else dict(draft.parameters)  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    """Options as they read after a round through msgpack, so that a decoded plan equals the one encoded."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in sorted(value.items())}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _declared(draft: Draft, types: Types) -> tuple[Declared, ...]:
    if draft.kind == "input":
        return tuple(Declared(name, each.datatype, each.shape) for name, each in types.inputs.items())
    if draft.kind != "gather":
        return ()
    found = []
    for name in sorted(draft.step.outputs):
        known = types.of(Source(draft.name, name))
        found.append(Declared(name, known.datatype, known.shape) if known else Declared(name, "FP32", (-1,)))
    return tuple(found)
