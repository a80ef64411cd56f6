"""What is drawn of a plan: a box for each step, an arrow for each tensor that one takes from another.

A map's three nodes become two: where rows begin, and where they come together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from contracts.names import ModelVersion
from contracts.plans import Condition, Node, Plan, Source


class Box(NamedTuple):
    """A step. `lines`: its name, and what it does."""

    name: str
    kind: str
    lines: tuple[str, ...]
    scope: str
    is_join: bool


class Arrow(NamedTuple):
    """What one step takes from another. `is_condition`: only to decide whether it runs."""

    source: str
    target: str
    tensors: tuple[str, ...]
    is_condition: bool


class Picture(NamedTuple):
    """A pipeline as boxes and arrows; boxes in an order in which they can run."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    def as_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "pipeline": self.title,
            "steps": [box._asdict() | {"lines": list(box.lines)} for box in self.boxes],
            "edges": [arrow._asdict() | {"tensors": list(arrow.tensors)} for arrow in self.arrows],
        }


def picture(plan: Plan, names: Mapping[ModelVersion, str]) -> Picture:
    """The picture of a plan; `names`: how models are written that were not pinned."""
    drawn = {f"{node.name}/yield": node.name for node in plan.nodes if node.kind == "gather"}
    boxes, arrows = [], []
    for node in plan.nodes:
        if node.kind != "yield":
            boxes.append(Box(node.name, node.kind, _lines(node, names), node.scope, node.is_join))
        data, conditions = _reads(node)
        target = drawn.get(node.name, node.name)
        for found, is_condition in ((data, False), (conditions, True)):
            for step, tensors in found.items():
                if is_condition and step in data:
                    continue
                arrows.append(Arrow(drawn.get(step, step), target, tuple(sorted(tensors)), is_condition))
    joined = {(arrow.source, arrow.target) for arrow in arrows}
    arrows += [  # a gather of constants still hangs on its map
        Arrow(f"{node.name}/map", node.name, (), is_condition=False)
        for node in plan.nodes
        if node.kind == "gather" and not any(target == node.name for _, target in joined)
    ]
    return Picture(str(plan.pipeline), tuple(boxes), tuple(arrows))


def _reads(node: Node) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    data: dict[str, set[str]] = {}
    for member in node.members:
        for binding in member.bindings:
            _note(data, binding.alternatives)
    conditions: dict[str, set[str]] = {}
    for guard in node.when:
        for condition in guard.conditions:
            _note(conditions, condition.alternatives)
    return data, conditions


def _note(found: dict[str, set[str]], alternatives: Any) -> None:
    for each in alternatives:
        if isinstance(each, Source):
            found.setdefault(each.step, set()).add(each.tensor)


def _lines(node: Node, names: Mapping[ModelVersion, str]) -> tuple[str, ...]:
    match node.kind:
        case "input":
            what = [", ".join(declared.name for declared in node.declared)]
        case "model":
            what = [names.get(node.model, str(node.model)) if node.model is not None else ""]
        case "reduce":
            what = [node.reducer + _require(node)]
        case "map":
            what = ["each row"]
        case "gather":
            what = ["rows together" + _require(node)]
        case _:
            what = [", ".join(binding.name for binding in node.members[0].bindings)]
    what += [
        _condition(condition, is_negated=guard.is_negated) for guard in node.when for condition in guard.conditions
    ]
    if node.on_error != "fail":
        what.append(f"on error: {node.on_error}")
    return (node.name, *what)


def _require(node: Node) -> str:
    if node.require == "quorum":
        return f" · any {node.quorum}"
    return "" if node.require == "all" else f" · {node.require.replace('_', ' ')}"


def _condition(condition: Condition, *, is_negated: bool) -> str:
    source = condition.alternatives[0] if condition.alternatives else None
    name = source.key if isinstance(source, Source) else "constant"
    value = "" if condition.value is None else f" {condition.value}"
    return f"{'unless' if is_negated else 'if'} {name} {condition.op.replace('_', ' ')}{value}"
