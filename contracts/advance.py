"""What comes next in a job: a pure function of the plan, of what ended and of the values that were carried.

Three things happen to a job: it starts, a model that it asked ends, and a join has the parts it waits for. Each makes
emissions: asks, parts for joins, or the answer. A job whose every emission is carried out at least once, and whose
joins are fired with the same parts in the same order, gets the same answer, however often a part of it is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Literal

from contracts import gathering, rows
from contracts.environment import (
    add_missing,
    failed_steps,
    failure_of,
    kept,
    merge,
    missing_of,
    put_failure,
    put_value,
    renamed,
    tensor_of,
    texts_of,
)
from contracts.errors import HeadraceError, InvalidRequest
from contracts.evaluate import (
    Context,
    Inputs,
    Result,
    ballot,
    guarded,
    lacking,
    model_inputs,
    named_outputs,
    own_failure,
    reduced,
)
from contracts.messages import Parameters, Status
from contracts.plans import (
    INPUT,
    MISSING,
    PARAMETERS,
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
    Value,
)
from contracts.tensors import Tensor, check_tensor

Parts = Mapping[str | int, Part]
Spared = Callable[[Node, int], None]
"""Told of each model that a condition kept from being asked, and for how many rows: what a cascade saves."""


def start(
    plan: Plan, inputs: Sequence[Tensor], parameters: Parameters, *, spared: Spared | None = None
) -> list[Emission]:
    """The head: what a submission becomes. Inputs that the pipeline does not take are answered INVALID."""
    head = plan.by_name[INPUT]
    fault = _check_inputs(head, inputs)
    if fault is not None:
        return [Answer(failure=Failure(Status.INVALID, fault, INPUT))]
    tensors = {tensor.name: tensor for tensor in inputs}
    if PARAMETERS in head.outputs:
        tensors[PARAMETERS] = tensor_of(PARAMETERS, [json.dumps(parameters)])
    following = _straight_on(plan, head, (), {}, tensors)
    return _Walk(plan, spared).run(head, (), {}, Value(tensors)) if following is None else [following]


def advance(
    plan: Plan, node: str, branch: Branch, outcome: Outcome, env: Env, *, spared: Spared | None = None
) -> list[Emission]:
    """A model that was asked has ended; `env` is what was carried beside its inputs.

    `outcome` is of the last attempt: `on_error` is applied here, retries are the caller's.
    """
    asked = plan.by_name[node]
    if isinstance(outcome, Value):
        following = _straight_on(plan, asked, branch, env, outcome.tensors)
        if following is not None:
            return [following]
        outcome = lacking(asked, outcome.tensors) or outcome
    if isinstance(outcome, Failure):
        outcome = own_failure(asked, outcome)
    return _Walk(plan, spared).run(asked, branch, env, outcome)


def fire(plan: Plan, join: str, branch: Branch, parts: Parts, *, spared: Spared | None = None) -> list[Emission]:
    """A join is ready, or its time is over: what it becomes.

    `parts` are in the order of their arrival (their offsets) by source. Only the shortest beginning of them that makes
    the join ready counts, so that parts which come later change nothing. When it is not ready, what has not come counts
    as failed by DEADLINE_EXCEEDED.
    """
    node = plan.by_name[join]
    count = _decisive(node, parts)
    if count is not None and count < len(parts):
        parts = dict(islice(parts.items(), count))
    walk = _Walk(plan, spared)
    if node.kind == "gather":
        return walk.gather(node, branch, parts, is_late=count is None)
    context = _arrived(node, parts, is_late=count is None)
    return walk.evaluate(node, branch, context)


def is_complete(plan: Plan, join: str, parts: Parts) -> bool:
    """Whether every branch of a join is accounted for: nothing more can come."""
    node = plan.by_name[join]
    return gathering.is_complete(node, parts) if node.kind == "gather" else len(parts) >= len(node.branches)


def is_ready(plan: Plan, join: str, parts: Parts) -> bool:
    """Whether a join may be fired before its time is over: whatever still comes would change nothing."""
    return _decisive(plan.by_name[join], parts) is not None


# --- straight on ------------------------------------------------------------------------------------------------------


def _straight_on(
    plan: Plan, node: Node, branch: Branch, env: Env, tensors: Mapping[str, Tensor]
) -> Ask | Answer | None:
    """What the walk would come to from a node whose value leads to one thing only, for a quarter of its work.

    None when there is something to decide after all, and the walk has to: a tensor is not there, or a step has failed.
    """
    way = plan.straight.get(node.name)
    if way is None or MISSING in env or failed_steps(env):
        return None
    values = dict(env)
    for name, key in way.made:
        if name not in tensors:
            return None
        values[key] = tensors[name]
    behind = way.behind
    try:
        inputs = tuple([renamed(values[key], name) for name, key in way.inputs])
    except KeyError:
        return None
    if behind.kind == "output":
        return Answer(inputs)
    assert behind.model is not None  # noqa: S101 - or the way would not be straight
    carried = {key: renamed(values[key], key) for key in behind.keep if key in values}
    parameters = _parameters(behind, values)
    return Ask(behind.name, branch, behind.model, inputs, carried, parameters, behind.timeout_ms, behind.retries)


def _parameters(node: Node, env: Env) -> Parameters:
    """What a model is given: what the plan says, or else what the caller gave."""
    if node.parameters is not None:
        return node.parameters
    (text,) = texts_of(env.get(f"{INPUT}.{PARAMETERS}")) or ["{}"]
    found: Parameters = json.loads(text)
    return found or {}


# --- joins ------------------------------------------------------------------------------------------------------------


def _decisive(node: Node, parts: Parts) -> int | None:
    """How many of the parts, by arrival, decide a join; None when these do not yet."""
    if node.kind == "gather":
        return gathering.decisive(node, parts)
    if node.is_fail_fast:
        failed = next((index for index, part in enumerate(parts.values(), 1) if part.kind == "error"), None)
        if failed is not None:
            return failed
    if node.quorum:
        env: Env = {}
        pending, ranks = set(node.branches), dict[str, int]()
        for index, (source, part) in enumerate(parts.items()):
            merge(env, part.env)
            pending.discard(str(source))
            ranks[str(source)] = index
            if guarded(node, Context(env, pending, ranks)) is None:
                votes = ballot(node, Context(env, pending, ranks))
                if len(votes.chosen) >= node.quorum:
                    return index + 1
    return len(parts) if len(parts) >= len(node.branches) else None


def _arrived(node: Node, parts: Parts, *, is_late: bool) -> Context:
    env: Env = {}
    ranks: dict[str, int] = {}
    for index, (source, part) in enumerate(parts.items()):
        merge(env, part.env)
        ranks.setdefault(str(source), index)
        for step in failed_steps(part.env):
            failure = failure_of(part.env, step)
            ranks.setdefault(step, index)
            ranks.setdefault(failure.step if failure else step, index)
    pending = {branch for branch in node.branches if branch not in parts}
    if is_late:
        for step in pending:
            put_failure(env, step, _late(step))
        pending = set()
    return Context(env, pending, ranks)


def _late(step: str) -> Failure:
    return Failure(Status.DEADLINE_EXCEEDED, f"step {step} did not end in time", step, retryable=True)


# --- the walk ---------------------------------------------------------------------------------------------------------


class _Walk:
    """From one node on, everything that can be done without a message; in the end, the messages."""

    def __init__(self, plan: Plan, spared: Spared | None) -> None:
        self._plan = plan
        self._spared = spared
        self._emitted: list[Emission] = []
        self._todo: list[tuple[Node, Branch, Context]] = []

    def run(self, node: Node, branch: Branch, env: Env, outcome: Outcome) -> list[Emission]:
        """Go on behind a node that has ended."""
        self._ended(node, branch, env, Result(outcome))
        return self._go()

    def evaluate(self, node: Node, branch: Branch, context: Context) -> list[Emission]:
        """Evaluate a join, and go on behind it."""
        self._todo.append((node, branch, context))
        return self._go()

    def gather(self, node: Node, branch: Branch, parts: Parts, *, is_late: bool) -> list[Emission]:
        """Put rows together, and go on behind the gather."""
        head = gathering.width_part(node, parts)
        if head is None:
            return self.run(node, branch, {}, own_failure(node, _late(node.name)))
        env = dict(head.env)
        self._ended(node, branch, env, gathering.gathered(node, parts, is_late=is_late))
        return self._go()

    def _go(self) -> list[Emission]:
        while self._todo:
            node, branch, context = self._todo.pop()
            self._evaluate(node, branch, context)
        return self._emitted

    def _evaluate(self, node: Node, branch: Branch, context: Context) -> None:
        if node.kind == "output":
            self._emitted.append(_answer(node, context))
            return
        found = guarded(node, context)
        if found is not None:
            if self._spared is not None and node.kind == "model" and isinstance(found, Skip):
                self._spared(node, _rows_of(model_inputs(node, context)))
            self._ended(node, branch, context.env, Result(found))
        elif node.kind == "model":
            self._ask(node, branch, context)
        elif node.kind == "map":
            self._split(node, branch, context)
        else:
            result = reduced(node, context) if node.kind == "reduce" else Result(_yielded(node, context))
            self._ended(node, branch, context.env, result)

    def _ended(self, node: Node, branch: Branch, env: Env, result: Result) -> None:
        env = dict(env)
        outcome = result.outcome
        if isinstance(outcome, Value):
            put_value(env, node.name, outcome.tensors, node.outputs)
        elif isinstance(outcome, Failure):
            put_failure(env, node.name, outcome)
        if result.missing:
            add_missing(env, result.missing)
        if node.kind != "map":  # behind a map that ended here, there are no rows
            self._todo.extend((behind, branch, Context(env)) for behind in reversed(self._plan.hosted[node.name]))
        kind = _kinds[type(outcome)]
        failure = outcome if isinstance(outcome, Failure) else None
        for join, brings in self._plan.feeds[node.name]:
            if node.kind == "map" and join.kind != "gather":
                continue
            is_row = node.kind == "yield"
            source: str | int = branch[-1] if is_row else node.name
            target = branch[:-1] if is_row else branch
            self._emitted.append(Part(join.name, target, source, kind, kept(env, brings), failure))

    def _ask(self, node: Node, branch: Branch, context: Context) -> None:
        inputs = model_inputs(node, context)
        if not isinstance(inputs, dict):
            self._ended(node, branch, context.env, Result(inputs))
            return
        parameters = _parameters(node, context.env)
        if node.model is None:
            self._ended(
                node, branch, context.env, Result(Failure(Status.INTERNAL, "the plan names no model", node.name))
            )
            return
        carried, tensors = kept(context.env, node.keep), tuple(inputs.values())
        ask = Ask(node.name, branch, node.model, tensors, carried, parameters, node.timeout_ms, node.retries)
        self._emitted.append(ask)

    def _split(self, node: Node, branch: Branch, context: Context) -> None:
        inputs = model_inputs(node, context)
        if not isinstance(inputs, dict):
            self._ended(node, branch, context.env, Result(inputs))
            return
        try:
            width = rows.count_rows(tuple(inputs.values()), node.axis, node.max_rows)
        except HeadraceError as exc:
            self._ended(node, branch, context.env, Result(_failed_map(node, exc)))
            return
        cut = {name: list(rows.split(tensor, node.axis)) for name, tensor in inputs.items() if name in node.outputs}
        for join, brings in self._plan.feeds[node.name]:
            if join.kind == "gather":
                env = kept(context.env, brings)
                self._emitted.append(Part(join.name, branch, node.name, "width", env, width=width))
        for index in range(width):
            env = dict(context.env)
            put_value(env, node.name, {name: column[index] for name, column in cut.items()}, node.outputs)
            self._row(node, (*branch, index), env)

    def _row(self, node: Node, branch: Branch, env: Env) -> None:
        """Begin the body of a map for one row."""
        self._todo.extend((behind, branch, Context(env)) for behind in self._plan.hosted[node.name])
        for join, brings in self._plan.feeds[node.name]:
            if join.kind != "gather":
                self._emitted.append(Part(join.name, branch, node.name, "value", kept(env, brings)))


def _rows_of(inputs: Inputs | Failure | Skip) -> int:
    """How many rows a model would have been asked for."""
    return max((tensor.rows for tensor in inputs.values()), default=0) if isinstance(inputs, dict) else 0


_kinds: dict[type[Outcome], Literal["value", "skip", "error"]] = {Value: "value", Skip: "skip", Failure: "error"}


def _failed_map(node: Node, exc: HeadraceError) -> Outcome:
    status = Status.INVALID if isinstance(exc, InvalidRequest) else Status.INTERNAL
    return own_failure(node, Failure(status, str(exc), node.name))


def _yielded(node: Node, context: Context) -> Outcome:
    found = named_outputs(node, context)
    if isinstance(found, Failure):
        return found
    tensors, _ = found
    return Value(tensors) if tensors else Skip()


def _answer(node: Node, context: Context) -> Answer:
    found = named_outputs(node, context)
    missing = missing_of(context.env)
    if isinstance(found, Failure):
        return Answer(failure=found, missing=missing)
    tensors, skipped = found
    return Answer(tuple(tensors.values()), None, tuple(skipped), missing)


def _check_inputs(head: Node, inputs: Sequence[Tensor]) -> str | None:
    wanted = {declared.name: declared for declared in head.declared}
    names = [tensor.name for tensor in inputs]
    if sorted(names) != sorted(wanted):
        return f"the pipeline takes the inputs {', '.join(wanted)}; the request brings {', '.join(names) or 'none'}"
    for tensor in inputs:
        fault = check_tensor(tensor)
        if fault:
            return fault
        declared = wanted[tensor.name]
        if tensor.datatype != declared.datatype or not _fits(tensor.shape, declared.shape):
            sizes = ["any" if size < 0 else size for size in declared.shape]
            return (
                f"input {tensor.name!r} must be {declared.datatype} {sizes}, not {tensor.datatype} {list(tensor.shape)}"
            )
    return None


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    if shape[1:] == declared[1:]:  # as nearly always: only the number of rows is open
        return len(shape) == len(declared) and (not shape or declared[0] in (-1, shape[0]))
    return len(shape) == len(declared) and all(size in (-1, given) for size, given in zip(declared, shape, strict=True))
