"""One partition of a joins topic, told as short histories: what is written to it, and a joiner that reads it."""

from __future__ import annotations

from collections.abc import Mapping

from contracts.messages import Hop, RequestHeaders
from contracts.names import ModelVersion
from contracts.parts import MarkerBody, PartHeaders, PartKind
from contracts.plans import Branch, Node, Part, Plan
from workers.joiner.join import Arrival as PartArrival
from workers.joiner.join import Decision, Fire, JoinKey, Mark, Patience, Source
from workers.joiner.table import JoinTable

CLOSE_MS, KEEP_MS, LINGER_MS = Patience()
START = 1_000_000
TTL = 10_000
DEADLINE = START + TTL

PLAN = Plan(
    pipeline=ModelVersion("p", 1),
    partitions=1,
    nodes=(
        Node(name="both", kind="reduce", branches=("a", "b")),
        Node(name="any", kind="reduce", branches=("a", "b"), require="first_of", quorum=1),
        Node(name="soon", kind="reduce", branches=("a", "b"), require="best_effort", timeout_ms=500),
        Node(name="rows", kind="gather", branches=("crops", "crops/out")),
    ),
)


def is_ready(plan: Plan, join: str, parts: Mapping[Source, Part]) -> bool:
    node = plan.by_name[join]
    if node.kind == "gather":
        widths = [part.width for part in parts.values() if part.source == "crops"]
        return bool(widths) and len(parts) == 1 + widths[0]
    return len(parts) >= (node.quorum or len(node.branches))


class History:
    """One partition: what is written to it, and a joiner that reads it."""

    def __init__(self, *, max_bytes: int = 1 << 20) -> None:
        self.records: list[tuple[PartArrival | None, PartHeaders, MarkerBody | None, int]] = []
        self.now = START
        self.max_bytes = max_bytes
        self.cancelled: set[str] = set()
        self.done: set[int] = set()
        self.restart()

    def restart(self, committed: int | None = None) -> None:
        """The joiner dies; the next one claims the partition."""
        self.base = self.commit_point if committed is None else committed
        self.done = set()
        self.read = self.base
        self.table = JoinTable(
            self.base, len(self.records), max_bytes=self.max_bytes, is_ready=is_ready, cancelled=self.cancelled
        )

    @property
    def commit_point(self) -> int:
        at = getattr(self, "base", 0)
        while at in self.done:
            at += 1
        return at

    def part(
        self,
        job: str,
        join: str,
        source: Source,
        *,
        branch: Branch = (),
        width: int = 0,
        ttl: int = TTL,
        size: int = 10,
    ) -> int:
        hop = Hop(job, PLAN.digest, "p@1", join, branch)
        headers = PartHeaders(RequestHeaders(f"{job}{source}", None, ttl, hop=hop), hop, PartKind.VALUE, str(source))
        part = Part(join, branch, source, "width" if source == "crops" else "value", {}, None, width)
        offset = len(self.records)
        self.records.append((PartArrival(offset, headers, part, size, self.now), headers, None, self.now))
        return offset

    def append(self, mark: Mark) -> int:
        self.records.append((None, mark.headers, mark.body, self.now))
        return len(self.records) - 1

    def catch_up(self) -> list[Decision]:
        while self.read < len(self.records):
            arrival, headers, marker, appended = self.records[self.read]
            if arrival is not None:
                self.table.offer(arrival, PLAN, self.now)
            elif marker is not None:
                key = JoinKey(headers.hop.job, headers.hop.step, headers.hop.branch)
                marked = PartHeaders(headers.request, Hop(key.job, "", "p@1", key.join, key.branch), PartKind.MARKER)
                self.table.mark(self.read, marked, marker, appended)
            self.read += 1
        return self.due()

    def due(self) -> list[Decision]:
        decisions = self.table.due(self.now)
        self.done.update(self.table.settled())
        return decisions

    def fire(self) -> tuple[Fire, Mark]:
        """Exactly one join is fired now; its marker is written."""
        (fire,) = self.catch_up()
        assert isinstance(fire, Fire)
        assert self.catch_up() == []
        self.table.fired(fire)
        (mark,) = self.due()
        assert isinstance(mark, Mark)
        return fire, mark

    def close(self, mark: Mark) -> int:
        offset = self.append(mark)
        self.table.acknowledged(mark.key, mark.body, self.now)
        assert self.catch_up() == []
        return offset
