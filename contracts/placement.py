"""Where each node of a plan is evaluated, and which values travel to it.

`available(n)`: the nodes whose outcome is known wherever n is evaluated. A node whose parents are all known behind one
of them is evaluated there, inline, and needs no message; any other waits for parts, as a join: of its parents, those
that the others do not bring along anyway. So a chain needs no join, however far back a step reaches.

A join that may go on before all parts are there (`quorum`, `first_of`, or a time of its own) is always one, each parent
a branch; behind a join that may do without a part, only what every part brings is known.

What travels is worked out backwards: a node needs what is read behind it until the next message, and what the parts
sent from there must bring. Where a join has all its parts, each value is brought by one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from contracts.plans import INPUT, Source


class Step(NamedTuple):
    """What placing needs to know of a node."""

    name: str
    scope: str
    """The map it is in the body of."""
    reads: frozenset[Source]
    is_gather: bool = False
    can_go_early: bool = False
    """Whether it may go on with a part missing (so that its parts do not stand in for each other)."""
    must_join: bool = False
    has_alternatives: bool = False
    """Whether a failure among its inputs may leave it unharmed."""


class Place(NamedTuple):
    """Where a node is evaluated and what travels to it."""

    host: str | None
    branches: tuple[str, ...]
    brings: tuple[tuple[str, ...], ...]
    keep: tuple[str, ...]
    is_fail_fast: bool


def place(steps: Sequence[Step]) -> dict[str, Place]:
    """The places of all nodes; they must be in topological order, the input first."""
    by_name = {step.name: step for step in steps}
    outer = _outer_reads(steps, by_name)
    hosts: dict[str, str | None] = {}
    branches: dict[str, tuple[str, ...]] = {}
    known: dict[str, frozenset[str]] = {}
    for step in steps:
        parents = _parents(step, outer[step.name], by_name)
        host, sent = _host(step, parents, known)
        hosts[step.name], branches[step.name] = host, sent
        if host is not None:
            known[step.name] = known[host] | {host}
        elif step.is_gather:
            known[step.name] = known[sent[0]]
        else:
            sets = [known[branch] | {branch} for branch in sent]
            meet: Callable[..., frozenset[str]] = frozenset.intersection if step.can_go_early else frozenset.union
            known[step.name] = meet(*sets) if sets else frozenset()
    needs, brings = _needs(steps, hosts, branches, known)
    fast = _fail_fast(steps, hosts, outer)
    return {
        step.name: Place(
            hosts[step.name],
            branches[step.name],
            tuple(_keys(brings[step.name, branch]) for branch in branches[step.name]),
            _keys(needs[step.name]),
            step.name in fast,
        )
        for step in steps
    }


def _keys(sources: Iterable[Source]) -> tuple[str, ...]:
    return tuple(sorted(source.key for source in sources))


def _outer_reads(steps: Sequence[Step], by_name: Mapping[str, Step]) -> dict[str, set[str]]:
    """What each node needs to know: the steps it reads and, of a map, what its body reads from outside."""
    found: dict[str, set[str]] = {
        step.name: set() if step.is_gather else {source.step for source in step.reads} for step in steps
    }
    for step in reversed(steps):  # inner bodies come after their map
        if step.scope:
            outside = {name for name in found[step.name] if name != step.scope and by_name[name].scope != step.scope}
            found[step.scope] |= outside
    return found


def _parents(step: Step, reads: Iterable[str], by_name: Mapping[str, Step]) -> tuple[str, ...]:
    """The nodes of its own scope that it depends on; what comes from outside of a map's body comes with the row."""
    if step.name == INPUT:
        return ()
    if step.is_gather:
        return f"{step.name}/map", f"{step.name}/yield"
    head = step.scope or INPUT
    parents = {name if by_name[name].scope == step.scope else head for name in reads} or {head}
    order = {name: index for index, name in enumerate(by_name)}
    return tuple(sorted(parents, key=order.__getitem__))


def _host(
    step: Step, parents: tuple[str, ...], known: Mapping[str, frozenset[str]]
) -> tuple[str | None, tuple[str, ...]]:
    if step.name == INPUT or step.is_gather:
        return None, parents
    if len(parents) > 1 and step.must_join:
        return None, parents
    wanted = frozenset(parents)
    for parent in reversed(parents):
        if wanted <= known[parent] | {parent}:
            return parent, ()
    if not step.can_go_early:
        parents = tuple(name for name in parents if not any(name in known[other] for other in parents))
    return None, parents


Needs = dict[str, set[Source]]


def _needs(
    steps: Sequence[Step],
    hosts: Mapping[str, str | None],
    branches: Mapping[str, tuple[str, ...]],
    known: Mapping[str, frozenset[str]],
) -> tuple[Needs, dict[tuple[str, str], set[Source]]]:
    """By node, what must be known when it has ended (besides its own); by join and branch, what the part brings."""
    needs: Needs = {step.name: set() for step in steps}
    brings: dict[tuple[str, str], set[Source]] = {}
    for step in reversed(steps):
        own = {source for source in needs[step.name] if source.step == step.name}
        wanted = (needs[step.name] - own) | step.reads
        needs[step.name] -= own
        host = hosts[step.name]
        if host is not None:
            needs[host] |= wanted
            continue
        brought: set[Source] = set()
        for branch in branches[step.name]:
            mine = {source for source in wanted if source.step == branch}
            carried = {source for source in wanted if source.step in known[branch]}
            if step.is_gather and branch != branches[step.name][0]:
                carried = set()  # rows bring what is their own
            elif not step.can_go_early:
                carried -= brought
            brings[step.name, branch] = mine | carried
            brought |= mine | carried
            needs[branch] |= mine | carried
    return needs, brings


def _fail_fast(
    steps: Sequence[Step], hosts: Mapping[str, str | None], outer: Mapping[str, Collection[str]]
) -> set[str]:
    """The joins that one error decides: nothing at them or behind them could make good of the other parts.

    Not a map to which a part only brings what its body reads: that error is the rows', once it is known how many.
    """
    absorbs = {step.name for step in steps if step.has_alternatives or step.can_go_early}
    for step in reversed(steps):
        if step.name in absorbs:
            absorbs.update(source.step for source in step.reads)
            if step.scope:
                absorbs.add(step.scope)
    own = {step.name: {source.step for source in step.reads} for step in steps}
    return {
        step.name
        for step in steps
        if hosts[step.name] is None
        and step.name not in absorbs
        and step.name != INPUT
        and own[step.name].issuperset(outer[step.name])
    }
