"""What should happen next: `plan(snapshot, demand, now) -> actions`. The file to read first.

The planner is a pure function. It looks at the whole pool at one moment, at what should run, and says what is to be
done about the difference; nothing else in this package decides. Redis holds the desired state, so a plan is only ever a
step: once carried out, the same function finds nothing left to do until a worker, an agent or an operator changes
something. Equal snapshots give equal plans, and a leader that takes over continues where the last one stopped.

For each deployment, in this order:

1. `crew.muster` says who stays and who leaves, and who gets the partitions meanwhile (make before break).
2. `shares.divide` spreads the partitions of each of its topics over those, with the fewest moves: `Want`. Lanes follow
   the partitions of their request topic, so that whoever draws from one lane draws from the others.
3. An owner that did not let go within the handover limit loses the partition: `Evict`.
4. Who leaves and holds nothing any more finishes: `Drain`.

Then the workers that are missing are placed, the first of every deployment before the second of any, so that nobody
starves while others grow: `Commit`, or `Wait` with the reason. Last, nodes that were drained and are empty are
cordoned: `Hold`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from contracts import topics
from contracts.names import ModelVersion
from contracts.pool import Lease, TopicAssignments
from scheduler.actions import Action, Commit, Drain, Evict, Hold, Wait, WaitReason, Want
from scheduler.crew import Crew, Muster, muster
from scheduler.drained import drained
from scheduler.filters import Ask, ask_of, grant_of
from scheduler.scoring import Board
from scheduler.shares import divide
from scheduler.snapshot import Demands, Snapshot, Wanted

SPREAD_FROM = 2
"""Deployments that ask for at least this many workers survive the loss of a node: theirs go to different ones."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_STEM_LENGTH = 20  # lease ids become socket paths, of which a system allows about a hundred characters


def plan(snapshot: Snapshot, demand: Demands, now: int) -> list[Action]:
    """What to do now; `now` is the pool's clock in Unix milliseconds."""
    crews = muster_all(snapshot, demand, now)
    actions: list[Action] = []
    busy: set[str | None] = set()
    for crew in crews:
        actions += _hand_over(snapshot, crew, now, busy)
    for crew in crews:
        actions += _let_go(snapshot, crew, busy)
    actions += _place(snapshot, demand, crews, now)
    actions += _settle_nodes(snapshot)
    return actions


def muster_all(snapshot: Snapshot, demand: Demands, now: int) -> list[Crew]:
    """The crews of all deployments, and of those that are gone but still have leases or partitions, by name."""
    leases: dict[str, list[Lease]] = defaultdict(list)
    for lease in snapshot.pool.leases.values():
        leases[lease.deployment].append(lease)
    crews = []
    for name, theirs in sorted(drained(snapshot, demand, leases).items()):
        one = demand.get(name)
        call = Muster(theirs, 0, None) if one is None else Muster(theirs, one.workers, one.models)
        crews.append(muster(snapshot, name, call, leases.get(name, []), now))
    return crews


def _hand_over(snapshot: Snapshot, crew: Crew, now: int, busy: set[str | None]) -> Iterator[Action]:
    """Want and Evict of one deployment; `busy` learns which workers have partitions, or are to get some."""
    wants: dict[str, Mapping[int, str | None]] = {}
    for topic in crew.topics:
        known = snapshot.pool.topics.get(topic) or TopicAssignments(topic=topic)
        among, partitions = crew.keepers_of(topic, snapshot), snapshot.partitions_of(topic)
        changes = _changed_wants(known, crew, among, partitions, leader=wants.get(topics.without_lane(topic)))
        if changes:
            yield Want(topic, changes)
        want = wants[topic] = {**known.want, **changes}
        evicted = tuple(
            partition
            for partition in known.overdue(now, snapshot.limits.handover_ms)
            if known.own[partition][0] != want.get(partition)
        )
        if evicted:
            yield Evict(topic, evicted)
        busy |= {owner for partition, (owner, _) in known.own.items() if partition not in evicted}
        busy |= set(want.values())


def _let_go(snapshot: Snapshot, crew: Crew, busy: Collection[str | None]) -> Iterator[Action]:
    """Drain of one deployment. Its partitions may be in the care of another by now."""
    for lease in crew.leaving:
        if lease.state == "reserved" or lease.id not in busy:
            yield Drain(lease.id, crew.deployment, _why_leaving(snapshot, crew, lease))


def _changed_wants(
    known: TopicAssignments,
    crew: Crew,
    among: Sequence[Lease],
    partitions: int,
    *,
    leader: Mapping[int, str | None] | None = None,
) -> dict[int, str | None]:
    """Whose wish changes. A partition that nobody is wanted for stays with who still holds it, if that one may.

    Those of a lane go with the same numbers of its request topic, the `leader`.
    """
    if not among and crew.wanted:
        # Wishes for leases that are about to be reaped are cleared with them, which remembers since when.
        going = {lease.id for lease in crew.leaving}
        return {partition: None for partition, lease in known.want.items() if lease in going}
    if leader and among:
        return {p: owner for p in range(partitions) if (owner := leader.get(p % len(leader))) != known.want.get(p)}
    keepers = {lease.id: 1.0 for lease in among}
    current = {partition: owner for partition, (owner, _) in known.own.items() if owner in keepers}
    current |= {partition: lease for partition, lease in known.want.items() if lease in keepers}
    settled = [partition for partition, (owner, _) in known.own.items() if current.get(partition) == owner]
    target = divide(range(partitions), current, keepers, settled)
    changes: dict[int, str | None] = {p: target.get(p) for p in range(partitions) if known.want.get(p) != target.get(p)}
    if not crew.wanted:
        # Nobody waits for these any more: without this they would be reported as unowned for ever.
        changes |= {p: None for p in known.unsettled_since if p not in known.own and p not in known.want}
    return changes


def _why_leaving(snapshot: Snapshot, crew: Crew, lease: Lease) -> str:
    node = snapshot.pool.nodes.get(lease.node)
    if node is not None and (node.state in ("draining", "cordoned") or node.hold):
        return f"node {lease.node} is being emptied"
    if crew.wanted and lease.models != crew.models:
        return "its deployment holds other models now"
    return f"{crew.wanted} workers are wanted" if crew.wanted else "no worker is wanted"


def _place(snapshot: Snapshot, demand: Demands, crews: Sequence[Crew], now: int) -> Iterator[Action]:
    """Commit and Wait for the workers that are missing."""
    board = Board(snapshot.pool)
    short = [crew for crew in crews if crew.missing]
    # By how many workers its deployment would already have, then by name.
    turns = sorted(
        (turn, crew.deployment)
        for crew in short
        for turn in range(crew.wanted - crew.missing, crew.wanted - _held_back(snapshot, crew))
    )
    by_name = {crew.deployment: crew for crew in short}
    nodes = {name: Counter(lease.node for lease in (*c.starting, *c.serving)) for name, c in by_name.items()}
    asks = {name: ask_of(demand[name].spec) for name in by_name}
    obstacles = {name: _obstacle(snapshot, demand[name], now) for name in by_name}
    placed: Counter[str] = Counter()
    for number, (_, name) in enumerate((turn for turn in turns if obstacles[turn[1]] is None), start=1):
        lease_id = f"{_stem(name)}-{_base36(now)}{snapshot.salt}{number:x}"
        commit = _commit(board, demand[name], asks[name], nodes[name], lease_id)
        if commit is not None:
            placed[name] += 1
            nodes[name][commit.node] += 1
            yield commit
    for name, crew in by_name.items():
        known = snapshot.backoff.get(name)
        missing = crew.missing - placed[name]
        otherwise: WaitReason = "recent starts failed" if known else "no device fits"
        if missing:
            yield Wait(name, missing, obstacles[name] or otherwise, known.retry_unix_ms if known else None)


def _held_back(snapshot: Snapshot, crew: Crew) -> int:
    """How many of the missing workers are not tried now: after a failed start one at a time is enough to find out."""
    if crew.deployment not in snapshot.backoff:
        return 0
    return crew.missing if crew.starting else crew.missing - 1


def _obstacle(snapshot: Snapshot, wanted: Wanted, now: int) -> WaitReason | None:
    """Why no worker of a deployment may be placed now, wherever there may be room."""
    if not wanted.is_registered:
        return "its model is not registered"
    known = snapshot.backoff.get(str(wanted.spec.key))
    return "recent starts failed" if known is not None and now < known.retry_unix_ms else None


def _commit(board: Board, wanted: Wanted, ask: Ask, nodes: Mapping[str, int], lease_id: str) -> Commit | None:
    spec = wanted.spec
    device = board.find(ask, nodes if spec.workers.min >= SPREAD_FROM else None)
    if device is None:
        return None
    share, mode = grant_of(ask, device)
    board.take(device, share, mode)
    return Commit(
        lease=lease_id,
        deployment=str(spec.key),
        models=wanted.models,
        tenant=spec.tenant,
        node=device.node,
        mode=mode,
        shares=(share,),
        gens={device.id: device.gen},
    )


def _settle_nodes(snapshot: Snapshot) -> Iterator[Action]:
    """A node that an operator drains is cordoned when nothing runs there any more."""
    busy = {lease.node for lease in snapshot.pool.leases.values()}
    for name, node in sorted(snapshot.pool.nodes.items()):
        if node.state == "draining" and name not in busy:
            yield Hold(name, "cordoned")


def _stem(deployment: str) -> str:
    key = ModelVersion.parse(deployment)
    return f"{key.model[:_STEM_LENGTH].rstrip('.')}-{key.version}"


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits or "0"
