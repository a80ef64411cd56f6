"""A job's answer in parts: what each part of a streaming model becomes behind the model, and what its end does. Pure.

Behind a plan's tail nothing waits for anything else, so every part goes on by itself: reducers see one part at a time,
and the outputs that are made of it are the job's part. What the job answers besides, such as a value of an earlier
step, comes with the end; so does everything that a model without any parts leaves.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from contracts.advance import advance
from contracts.plans import Answer, Env, Plan, Skip, Tail, Value
from contracts.tensors import Tensor


def tail_of(plan: Plan, node: str) -> Tail | None:
    """The plan's tail if it begins at this node."""
    return plan.tail if plan.tail is not None and plan.tail.node == node else None


def part_of(plan: Plan, node: str, outputs: Mapping[str, Tensor], carried: Env) -> Answer:
    """The job's part that is made of one of the model's; with a failure, the job has failed."""
    answer = _behind(plan, node, Value(outputs), carried)
    made = plan.tail.outputs if plan.tail is not None else frozenset()
    return Answer(tuple(output for output in answer.outputs if output.name in made), answer.failure)


def end_of(plan: Plan, node: str, outputs: Mapping[str, Tensor], carried: Env, *, index: int, run: str) -> Answer:
    """The job's end, `index` parts after its beginning, made of the model's last outputs, if there are any."""
    answer = _behind(plan, node, Value(outputs) if outputs else Skip(), carried)
    if index and not outputs and plan.tail is not None:  # what is made of the model's has come already
        made = plan.tail.outputs
        answer = msgspec.structs.replace(
            answer,
            outputs=tuple(output for output in answer.outputs if output.name not in made),
            skipped=tuple(name for name in answer.skipped if name not in made),
        )
    return msgspec.structs.replace(answer, index=index, run=run)


def _behind(plan: Plan, node: str, outcome: Value | Skip, carried: Env) -> Answer:
    (answer,) = advance(plan, node, (), outcome, carried)
    assert isinstance(answer, Answer)  # noqa: S101 - a tail is what leads to nothing else
    return answer
