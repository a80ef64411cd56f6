"""Pipelines at random, and two ways to run them: message by message in any order, and all in one place, in order.

The second knows nothing of hosts, parts and carried values; so where both agree, the placement of a plan is right.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from contracts import advance, gathering, rows
from contracts.compile import compile_plan
from contracts.environment import add_missing, missing_of, put_failure, put_value
from contracts.evaluate import Context, guarded, lacking, model_inputs, named_outputs, own_failure, reduced
from contracts.messages import Status
from contracts.names import ModelVersion
from contracts.pipelines import PipelineSpec
from contracts.plans import (
    INPUT,
    Answer,
    Ask,
    Branch,
    Emission,
    Env,
    Failure,
    Node,
    Outcome,
    Part,
    Plan,
    Skip,
    Source,
    Value,
    decode,
)
from contracts.tensors import Tensor

Fate = Callable[[Node, Branch], bool]
"""Whether a model's run succeeds."""


def pin(name: str, version: int | None, label: str | None) -> ModelVersion:
    return ModelVersion(name, version or 1)


def compiled(spec: Mapping[str, Any]) -> Plan:
    return compile_plan(PipelineSpec.model_validate(spec), pin=pin, signature_of=lambda _: None)


def winding(plan: Plan) -> Plan:
    """The same plan, only that nothing leads straight on in it: every step takes the long way."""
    found = decode(plan.encoded)
    vars(found)["straight"] = {}
    return found


# --- pipelines at random ----------------------------------------------------------------------------------------------

ON_ERROR: list[Any] = ["fail", "skip", {"default": {"y": {"const": [[0.5, 0.5]], "datatype": "FP32"}}}]


@st.composite
def pipelines(draw: st.DrawFn, *, certain: bool = False) -> dict[str, Any]:
    """A spec; `certain`: without quorums, whose result depends on what arrives first."""
    steps, sources = draw(_bodies(["input.a", "input.b"], 0, "", certain=certain))
    chosen = draw(st.lists(st.sampled_from(sources[2:]), min_size=2, max_size=4))
    outputs: dict[str, Any] = {f"o{index}": source for index, source in enumerate(chosen)}
    if draw(st.booleans()):
        outputs["either"] = draw(st.lists(st.sampled_from(sources), min_size=1, max_size=3))
    declared = [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in "ab"]
    return {"name": "random", "version": 1, "inputs": declared, "steps": steps, "outputs": outputs}


@st.composite
def chains(draw: st.DrawFn) -> dict[str, Any]:
    """A spec of models in a row, whose inputs and outputs are now and then of steps further back."""
    sources = ["input.a", "input.b"]
    steps: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 4))):
        back = st.lists(st.sampled_from(sources), max_size=2)
        step: dict[str, Any] = {"model": f"m-{number}", "inputs": {"x": [sources[-1], *draw(back)]}}
        if draw(st.booleans()):
            step["inputs"]["z"] = draw(st.sampled_from(sources))
        if draw(st.booleans()):
            step["parameters"] = draw(st.sampled_from([{}, {"k": 2}]))
        steps[f"s{number}"] = {**step, "on_error": draw(st.sampled_from(ON_ERROR))}
        sources.append(f"s{number}.y")
    outputs = {"last": [sources[-1], *draw(st.lists(st.sampled_from(sources), max_size=2))]}
    if draw(st.booleans()):
        outputs["other"] = [draw(st.sampled_from(sources))]
    declared = [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in "ab"]
    return {"name": "chain", "version": 1, "inputs": declared, "steps": steps, "outputs": outputs}


@st.composite
def _bodies(
    draw: st.DrawFn, outer: list[str], depth: int, prefix: str, *, certain: bool
) -> tuple[dict[str, Any], list[str]]:
    sources = list(outer)
    steps: dict[str, Any] = {}
    for number in range(draw(st.integers(4, 8) if depth == 0 else st.integers(1, 3))):
        name = f"{prefix}s{number}"
        kinds = ["model", "model", "model", "reduce", "reduce", "cascade"] + (["map", "loop"] if depth < 2 else [])
        step = draw(_steps(draw(st.sampled_from(kinds)), sources, depth, name, certain=certain))
        if draw(st.integers(0, 3)) == 0:
            operator = draw(st.sampled_from(["max_below", "max_at_least"]))
            step["when"] = {
                "tensor": draw(st.sampled_from(sources)),
                "op": operator,
                "value": draw(st.sampled_from([0.4, 0.6])),
            }
        steps[name] = step
        sources.append(f"{name}.y")
    return steps, sources


@st.composite
def _steps(draw: st.DrawFn, kind: str, sources: list[str], depth: int, name: str, *, certain: bool) -> dict[str, Any]:
    source = st.sampled_from(sources[-6:])
    either = st.one_of(source, st.lists(source, min_size=2, max_size=3))
    on_error = st.sampled_from(ON_ERROR)
    if kind == "model":
        inputs = {key: draw(either) for key in draw(st.sampled_from(["x", "xz"]))}
        return {"model": f"m-{name}", "inputs": inputs, "on_error": draw(on_error)}
    if kind == "cascade":
        stages = ["c-1", "c-2", "c-3"][: draw(st.integers(2, 3))]
        return {"cascade": stages, "inputs": {"x": draw(either)}, "confidence": "y", "threshold": 0.6}
    require: Any = draw(st.sampled_from(["all", "best_effort"] if certain else ["all", "best_effort", "first_of", "q"]))
    if kind == "reduce":
        members = draw(st.lists(source, min_size=2, max_size=4))
        require = {"quorum": draw(st.integers(1, len(members)))} if require == "q" else require
        return {"reduce": "mean", "inputs": {"y": members}, "require": require, "on_error": draw(on_error)}
    if kind == "map":
        over = draw(source)
        inner, known = draw(_bodies(["row.r", *sources[-3:]], depth + 1, f"{name}-", certain=certain))
        require = {"quorum": draw(st.integers(1, 3))} if require == "q" else require
        outputs = {"y": draw(st.one_of(st.just(known[-1]), st.lists(st.sampled_from(known), min_size=1, max_size=2)))}
        return {
            "map": {"over": {"r": over}, "max_rows": draw(st.sampled_from([2, 100]))},
            "steps": inner,
            "outputs": outputs,
            "require": require,
            "on_error": draw(on_error),
        }
    inner, known = draw(_bodies(["turn.y", *sources[-2:]], depth + 1, f"{name}-", certain=certain))
    until = {"tensor": "turn.y", "op": "max_at_least", "value": 0.7}
    turns = {"times": draw(st.integers(1, 3)), "start": {"y": draw(source)}, "until": until}
    return {"loop": turns, "steps": inner, "outputs": {"y": known[-1]}}


# --- models -----------------------------------------------------------------------------------------------------------


def fates(seed: int, percent: int) -> Fate:
    """Some runs fail, always the same ones."""
    return lambda node, branch: zlib.crc32(f"{seed}/{node.name}/{branch}".encode()) % 100 >= percent


def run_model(node: Node, branch: Branch, inputs: Mapping[str, Tensor], fate: Fate) -> Outcome:
    if not fate(node, branch):
        return Failure(Status.INTERNAL, "it did not work", node.name)
    first = next(iter(inputs.values()))
    total = sum(float(tensor.to_numpy().sum()) for tensor in inputs.values())
    value = (total * 7.3 + zlib.crc32(str(node.model).encode()) % 97 / 97) % 1.0
    return Value({"y": Tensor.from_numpy("y", np.full((first.rows, 2), value, np.float32))})


def job_inputs(row_count: int) -> list[Tensor]:
    values = np.arange(row_count * 2, dtype=np.float32).reshape(row_count, 2) / 10
    return [Tensor.from_numpy("a", values), Tensor.from_numpy("b", values + 0.3)]


# --- message by message -----------------------------------------------------------------------------------------------


class Messages:
    """One job of a plan, whose emissions are carried out in any order, some of them twice."""

    def __init__(self, plan: Plan, fate: Fate, order: random.Random) -> None:
        self.plan = plan
        self.answers: list[Answer] = []
        self.parts: dict[tuple[str, Branch], dict[str | int, Part]] = {}
        self.asked: list[Ask] = []
        self._fired: set[tuple[str, Branch]] = set()
        self._results: dict[tuple[str, Branch], list[Emission]] = {}
        self._winding = winding(plan)
        self._fate = fate
        self._order = order

    def run(self, inputs: list[Tensor]) -> Answer:
        todo = advance.start(self.plan, inputs, {"k": 1})
        assert advance.start(self._winding, inputs, {"k": 1}) == todo
        while todo:
            emission = todo.pop(self._order.randrange(len(todo)))
            todo += self._carry_out(emission)
        assert len(self.answers) == 1, self.answers
        return self.answers[0]

    def _carry_out(self, emission: Emission) -> list[Emission]:
        if isinstance(emission, Answer):
            self.answers.append(emission)
            return []
        if isinstance(emission, Part):
            return self._arrive(emission)
        self.asked.append(emission)
        node = self.plan.by_name[emission.node]
        inputs = {tensor.name: tensor for tensor in emission.inputs}
        outcome = run_model(node, emission.branch, inputs, self._fate)
        found = advance.advance(self.plan, emission.node, emission.branch, outcome, emission.carried)
        again = advance.advance(self._winding, emission.node, emission.branch, outcome, emission.carried)
        assert again == found
        return found

    def _arrive(self, part: Part) -> list[Emission]:
        key = (part.join, part.branch)
        here = self.parts.setdefault(key, {})
        assert part.source not in here, f"{key} got two parts of {part.source}"
        here[part.source] = part
        is_ready = advance.is_ready(self.plan, part.join, here)
        assert is_ready or not advance.is_complete(self.plan, part.join, here)
        if key in self._fired:
            assert advance.fire(self.plan, *key, here) == self._results[key], "later parts changed a decided join"
        if key in self._fired or not is_ready:
            return []
        self._fired.add(key)
        found = advance.fire(self.plan, *key, here)
        self._results[key] = found
        return found

    def check_edges(self) -> None:
        """Every join that anything reached got one part of every branch, and was fired."""
        for (name, branch), parts in self.parts.items():
            node = self.plan.by_name[name]
            if node.kind == "gather":
                width = parts[node.branches[0]].width
                assert set(parts) == {node.branches[0], *range(width)}
            else:
                assert set(parts) == set(node.branches)
            assert (name, branch) in self._fired


# --- all in one place -------------------------------------------------------------------------------------------------


Arrivals = Mapping[tuple[str, Branch], Mapping[str | int, Part]]
"""The parts of each join in the order in which they came."""


class InOrder:
    """One job of a plan: every node in order, with everything before it at hand.

    What a quorum is made of depends on what came first; `arrivals` says that.
    """

    def __init__(self, plan: Plan, fate: Fate, arrivals: Arrivals) -> None:
        self.plan = plan
        self._fate = fate
        self._arrivals = arrivals
        self._missing: dict[str, set[str]] = {}

    def run(self, inputs: list[Tensor]) -> Answer:
        env: Env = {}
        put_value(env, INPUT, {tensor.name: tensor for tensor in inputs}, self.plan.by_name[INPUT].outputs)
        answer = self._scope("", (), env)
        assert isinstance(answer, Answer)
        return answer

    def _scope(self, scope: str, branch: Branch, env: Env) -> Answer | Part | None:
        parts: dict[str, dict[str | int, Part]] = {}
        for node in self.plan.nodes:
            if node.scope != scope or node.kind == "input":
                continue
            context, late = self._context(node, branch, env)
            missing = set().union(*(self._missing.get(parent, set()) for parent in self._parents(node) - late))
            if node.kind == "output":
                return self._answer(node, context, missing)
            if node.kind == "yield":
                return self._row(node, branch, context, missing)
            if node.kind == "gather":
                result = gathering.gathered(node, self._rows(node, branch, parts[node.branches[0]]), is_late=False)
                missing |= self._missing.get(node.branches[0], set())
                outcome, absent = result.outcome, result.missing
            elif (found := guarded(node, context)) is not None:
                outcome, absent = found, ()
            else:
                outcome, absent = self._evaluate(node, branch, context, missing)
            if node.kind == "map":
                parts[node.name] = self._head(node, branch, outcome, env, missing)
            self._missing[node.name] = missing | set(absent)
            if isinstance(outcome, Failure):
                put_failure(env, node.name, outcome)
            elif isinstance(outcome, Value):
                put_value(env, node.name, outcome.tensors, node.outputs)
        return None

    def _decisive(self, node: Node, branch: Branch) -> list[str | int]:
        arrived = self._arrivals[node.name, branch]
        return list(arrived)[: advance._decisive(node, arrived)]

    def _context(self, node: Node, branch: Branch, env: Env) -> tuple[Context, set[str]]:
        """What a node sees, and of a quorum the branches that came too late."""
        if not node.quorum or not node.is_join or node.kind == "gather":
            return Context(env), set()
        came = self._decisive(node, branch)
        late = set(node.branches) - {str(source) for source in came}
        brought = {key for name, keys in zip(node.branches, node.brings, strict=True) if name in came for key in keys}
        brought |= {key.partition(".")[0] + "!" for key in brought}
        seen = {
            key: tensor
            for key, tensor in env.items()
            if key in brought or key.partition(".")[0].removesuffix("!") not in late
        }
        return Context(seen, late, {str(source): rank for rank, source in enumerate(came)}), late

    def _rows(self, node: Node, branch: Branch, parts: dict[str | int, Part]) -> dict[str | int, Part]:
        return {source: parts[source] for source in self._decisive(node, branch)} if node.quorum else parts

    def _evaluate(
        self, node: Node, branch: Branch, context: Context, missing: set[str]
    ) -> tuple[Outcome, tuple[str, ...]]:
        if node.kind == "reduce":
            result = reduced(node, context)
            return result.outcome, result.missing
        inputs = model_inputs(node, context)
        if not isinstance(inputs, dict):
            return inputs, ()
        if node.kind == "map":
            width = len(next(iter(inputs.values())).to_numpy())
            if width > node.max_rows:
                return Failure(Status.INVALID, "too many rows", node.name), ()
            return Value(inputs), ()
        outcome = run_model(node, branch, inputs, self._fate)
        if isinstance(outcome, Value):
            outcome = lacking(node, outcome.tensors) or outcome
        return (own_failure(node, outcome) if isinstance(outcome, Failure) else outcome), ()

    def _head(self, node: Node, branch: Branch, outcome: Outcome, env: Env, missing: set[str]) -> dict[str | int, Part]:
        gather = node.name.removesuffix("/map")
        if not isinstance(outcome, Value):
            failure = outcome if isinstance(outcome, Failure) else None
            return {node.name: Part(gather, branch, node.name, "error" if failure else "skip", {}, failure)}
        self._missing[node.name] = missing
        cut = {name: list(rows.split(tensor, 0)) for name, tensor in outcome.tensors.items()}
        width = len(next(iter(cut.values())))
        parts: dict[str | int, Part] = {node.name: Part(gather, branch, node.name, "width", {}, width=width)}
        for index in range(width):
            inner = dict(env)
            put_value(inner, node.name, {name: column[index] for name, column in cut.items()}, node.outputs)
            part = self._scope(node.name, (*branch, index), inner)
            assert isinstance(part, Part)
            parts[index] = part
        return parts

    def _row(self, node: Node, branch: Branch, context: Context, missing: set[str]) -> Part:
        found = named_outputs(node, context)
        env: Env = {}
        add_missing(env, missing)
        gather = node.name.removesuffix("/yield")
        if isinstance(found, Failure):
            return Part(gather, branch[:-1], branch[-1], "error", env, found)
        tensors, _ = found
        put_value(env, node.name, tensors, node.outputs)
        return Part(gather, branch[:-1], branch[-1], "value" if tensors else "skip", env)

    def _answer(self, node: Node, context: Context, missing: set[str]) -> Answer:
        found = named_outputs(node, context)
        names = tuple(sorted(missing))
        if isinstance(found, Failure):
            return Answer(failure=found, missing=names)
        tensors, skipped = found
        return Answer(tuple(tensors.values()), None, tuple(skipped), names)

    def _parents(self, node: Node) -> set[str]:
        found = _reads(node)
        if node.kind == "map":
            inside = {
                each.name
                for each in self.plan.nodes
                if f"{each.scope}/".startswith(f"{node.name.removesuffix('/map')}/")
            }
            for each in self.plan.nodes:
                if each.name in inside:
                    found |= _reads(each) - inside - {node.name}
        return found | ({node.scope} if node.scope else set())


def _reads(node: Node) -> set[str]:
    lists = [binding.alternatives for member in node.members for binding in member.bindings]
    lists += [condition.alternatives for guard in node.when for condition in guard.conditions]
    return {each.step for alternatives in lists for each in alternatives if isinstance(each, Source)}


__all__ = [
    "InOrder",
    "Messages",
    "Skip",
    "chains",
    "compiled",
    "fates",
    "job_inputs",
    "missing_of",
    "pin",
    "pipelines",
    "run_model",
]
