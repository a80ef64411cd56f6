"""What comes next in a job: a pure function of the plan, of what ended and of the values that were carried.

Three things happen to a job: it starts, a model that it asked ends, and a join has the parts it waits for. Each makes
emissions: asks, parts for joins, or the answer. A job whose every emission is carried out at least once, and whose
joins are fired with the same parts in the same order, gets the same answer, however often a part of it is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contracts.messages import Parameters
from contracts.plans import Branch, Emission, Env, Outcome, Part, Plan
from contracts.tensors import Tensor


def start(plan: Plan, inputs: Sequence[Tensor], parameters: Parameters) -> list[Emission]:
    """The head: what a submission becomes. Inputs that the pipeline does not take are answered INVALID."""
    raise NotImplementedError


def advance(plan: Plan, node: str, branch: Branch, outcome: Outcome, env: Env) -> list[Emission]:
    """A model that was asked has ended; `env` is what was carried beside its inputs.

    `outcome` is of the last attempt: `on_error` is applied here, retries are the caller's.
    """
    raise NotImplementedError


def fire(plan: Plan, join: str, branch: Branch, parts: Mapping[str | int, Part]) -> list[Emission]:
    """A join is ready, or its time is over: what it becomes.

    `parts` are in the order of their arrival (their offsets) by source. Only the shortest beginning of them that makes
    the join ready counts, so that parts which come later change nothing. When it is not ready, what has not come counts
    as failed by DEADLINE_EXCEEDED.
    """
    raise NotImplementedError


def is_complete(plan: Plan, join: str, parts: Mapping[str | int, Part]) -> bool:
    """Whether every branch of a join is accounted for: nothing more can come."""
    raise NotImplementedError


def is_ready(plan: Plan, join: str, parts: Mapping[str | int, Part]) -> bool:
    """Whether a join may be fired before its time is over: whatever still comes would change nothing."""
    raise NotImplementedError
