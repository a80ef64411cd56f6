"""A job that runs in memory: what its plan emits is carried out here, up to the models. Pure.

The plan is the one that chained jobs run by, and so are its rules: `advance` and `fire` decide, this only keeps the
parts that joins wait for. Whoever holds the job asks its models and says how they ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from contracts.advance import fire, is_complete, is_ready
from contracts.plans import Answer, Ask, Branch, Emission, Node, Part, Plan


class Join(NamedTuple):
    """One join of a job: the node and the rows of the maps that it is inside of."""

    node: str
    branch: Branch


class FusedJob:
    """The joins of one job, and its answer."""

    __slots__ = ("_fired", "_parts", "answer", "begun", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.answer: Answer | None = None
        """How the job ended; nothing that comes later changes it."""
        self.begun: list[tuple[Join, int]] = []
        """Joins that got their first part and may not wait longer than so many milliseconds; for the caller to take."""
        self._parts: dict[Join, dict[str | int, Part]] = {}
        self._fired: set[Join] = set()

    def take(self, emissions: Iterable[Emission]) -> list[Ask]:
        """Carry out emissions; returns the models that are to be asked."""
        asks: list[Ask] = []
        todo = deque(emissions)
        while todo and self.answer is None:
            emission = todo.popleft()
            if isinstance(emission, Ask):
                asks.append(emission)
            elif isinstance(emission, Part):
                todo.extend(self._arrived(emission))
            else:
                self.answer = emission
        return asks if self.answer is None else []

    def late(self, join: Join) -> list[Ask]:
        """The time of a join is over: what has not come does not count any more."""
        parts = self._parts.pop(join, None)
        if parts is None or self.answer is not None:
            return []
        self._fired.add(join)
        return self.take(fire(self.plan, join.node, join.branch, parts))

    def all_late(self) -> list[Ask]:
        """The job's own time is over."""
        asks: list[Ask] = []
        while self._parts and self.answer is None:
            for node in self.plan.joins:  # what a join becomes leads to later ones only
                for join in sorted(join for join in self._parts if join.node == node.name):
                    asks += self.late(join)
        return asks if self.answer is None else []

    def _arrived(self, part: Part) -> list[Emission]:
        join = Join(part.join, part.branch)
        if join in self._fired:
            return []
        node, parts = self.plan.by_name[part.join], self._parts.get(join)
        if parts is None:
            parts = self._parts[join] = {}
            if node.timeout_ms is not None:
                self.begun.append((join, node.timeout_ms))
        parts.setdefault(part.source, part)
        if not (self._is_worth_asking(node, part, parts) and is_ready(self.plan, part.join, parts)):
            return []
        self._fired.add(join)
        del self._parts[join]
        return fire(self.plan, part.join, part.branch, parts)

    def _is_worth_asking(self, node: Node, part: Part, parts: dict[str | int, Part]) -> bool:
        """Whether a part can have decided its join; most of ten thousand rows cannot."""
        if node.kind != "gather" or node.quorum or (node.is_fail_fast and part.kind == "error"):
            return True
        return is_complete(self.plan, node.name, parts)
