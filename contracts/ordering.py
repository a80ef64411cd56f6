"""The order in which a pipeline's nodes can be evaluated, cycles, and steps that nothing uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contracts.drafts import Draft, Fault
from contracts.plans import OUTPUT


def dependencies(draft: Draft, by_name: Mapping[str, Draft]) -> set[str]:
    """The nodes that come before a node: what it reads, the map whose rows it is for, the body of a gather."""
    found = {source.step for source in draft.sources if source.step in by_name}
    if draft.scope:
        found.add(draft.scope)
    if draft.kind == "gather":
        found |= {f"{draft.name}/map", f"{draft.name}/yield"}
    return found


def _all_dependencies(drafts: Sequence[Draft]) -> dict[str, set[str]]:
    """With those of a map's body outside of it, which must be known before the rows begin."""
    by_name = {draft.name: draft for draft in drafts}
    found = {draft.name: dependencies(draft, by_name) for draft in drafts}
    for draft in drafts:
        scope = draft.scope
        while scope:
            found[scope] |= {name for name in found[draft.name] if not _is_inside(by_name[name], scope, by_name)}
            scope = by_name[scope].scope
    return found


def _is_inside(draft: Draft, scope: str, by_name: Mapping[str, Draft]) -> bool:
    if draft.name == scope:
        return True
    around = draft.scope
    while around:
        if around == scope:
            return True
        around = by_name[around].scope
    return False


def in_order(drafts: Sequence[Draft]) -> tuple[list[Draft], list[Fault]]:
    """The drafts in topological order, those that could come at the same time by name; a cycle is a fault."""
    by_name = {draft.name: draft for draft in drafts}
    waiting = _all_dependencies(drafts)
    order: list[Draft] = []
    done: set[str] = set()
    while len(order) < len(drafts):
        ready = sorted(name for name, needs in waiting.items() if name not in done and needs <= done)
        if not ready:
            return order, [_cycle(waiting, done, by_name)]
        done.update(ready)
        order += [by_name[name] for name in ready]
    return order, []


def _cycle(waiting: Mapping[str, set[str]], done: set[str], by_name: Mapping[str, Draft]) -> Fault:
    name = min(set(waiting) - done)
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = min(waiting[name] - done)
    circle = [*path[path.index(name) :], name]
    return Fault(by_name[name].path, f"steps wait for each other: {' → '.join(circle)}")


def without_unused(drafts: Sequence[Draft]) -> tuple[list[Draft], list[Fault]]:
    """The drafts that the outputs depend on, and a warning for each step that they do not."""
    needs = _all_dependencies(drafts)
    used: set[str] = set()
    todo = [OUTPUT, "input"]
    while todo:
        name = todo.pop()
        if name not in used:
            used.add(name)
            todo += needs[name]
    left = [draft for draft in drafts if draft.name not in used]
    kinds = ("model", "reduce", "gather")
    faults = [
        Fault(draft.path, f"no output uses step {draft.name}; it will not run", is_warning=True)
        for draft in left
        if draft.kind in kinds
    ]
    return [draft for draft in drafts if draft.name in used], faults
