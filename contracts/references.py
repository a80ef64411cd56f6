"""Which values of a job must be at hand, and which may stay in the store. Pure.

Values travel past steps that do not look into them: a model's inputs are read by its worker, a job's outputs by the
client, and what is merely carried along by nobody. Conditions, reducers, maps and gathers do look; whoever evaluates
them reads what they need, and no more, before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from contracts.plans import Answer, Ask, Constant, Emission, Env, Node, Part, Plan, Source
from contracts.tensors import Tensor


def looked_into(plan: Plan, node: str) -> frozenset[str]:
    """The values whose content matters at once when a node ends, or, if it is a join, when it is fired."""
    found: set[str] = set()
    first = plan.by_name[node]
    todo = [first]
    while todo:
        one = todo.pop()
        todo.extend(plan.hosted[one.name])
        if one is not first or one.is_join:
            found |= _read_by(one)
    return frozenset(found)


def missing(plan: Plan, node: str, envs: Iterable[Mapping[str, Tensor]]) -> frozenset[str]:
    """The values that are to be read from the store before going on behind a node, or firing a join."""
    away = {key for env in envs for key, tensor in env.items() if tensor.ref is not None}
    try:
        return looked_into(plan, node) & away if away else frozenset()
    except (KeyError, IndexError):  # a plan that makes no sense: going on says so
        return frozenset()


def movable(plan: Plan, emission: Emission) -> tuple[Tensor, ...]:
    """The tensors of an emission that may lie in the store, whether they do or not.

    What tells a join that it is ready stays: that is asked at each part.
    """
    if isinstance(emission, Answer):
        return emission.outputs
    if isinstance(emission, Ask):
        return (*emission.inputs, *_values(emission.carried, ()))
    join = plan.by_name[emission.join]
    return _values(emission.env, _conditions(join) if join.quorum else ())


def moved(emission: Emission, tensors: Mapping[int, Tensor]) -> Emission:
    """The emission with other tensors instead of some of its own, by the `id` of those."""

    def now(found: Iterable[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors.get(id(tensor), tensor) for tensor in found)

    def env(found: Env) -> Env:
        return {key: tensors.get(id(tensor), tensor) for key, tensor in found.items()}

    if isinstance(emission, Answer):
        return msgspec.structs.replace(emission, outputs=now(emission.outputs))
    if isinstance(emission, Part):
        one = emission
        return Part(one.join, one.branch, one.source, one.kind, env(one.env), one.failure, one.width)
    ask = emission
    inputs, carried = now(ask.inputs), env(ask.carried)
    return Ask(ask.node, ask.branch, ask.model, inputs, carried, ask.parameters, ask.timeout_ms, ask.retries)


def _values(env: Env, stay: Collection[str]) -> tuple[Tensor, ...]:
    """Not failures, parameters and lists of what is missing: the plan reads those wherever they are."""
    return tuple(tensor for key, tensor in env.items() if key not in stay and "*" not in key and key[-1] != "!")


def _read_by(node: Node) -> set[str]:
    found = _conditions(node)
    if node.kind in ("reduce", "map"):
        for member in node.members:
            for binding in member.bindings:
                found |= _keys(binding.alternatives)
    elif node.kind == "gather":
        found |= {f"{node.branches[1]}.{declared.name}" for declared in node.declared}
    return found


def _conditions(node: Node) -> set[str]:
    return {key for guard in node.when for condition in guard.conditions for key in _keys(condition.alternatives)}


def _keys(alternatives: Iterable[Source | Constant]) -> set[str]:
    return {alternative.key for alternative in alternatives if isinstance(alternative, Source)}
