"""Random operations, also delayed, repeated and stale ones, against a real server and a plain model of the pool.

Leases are drawn from all there ever were, and terms from all that ever led, so every call that could arrive late does.
After each step the server's state equals the model's, and these hold: what leases hold is what devices have given and
never more than they have; a mode excludes the others; tokens rise in the order of grants; only a confirmation frees
capacity; a partition has one owner, which is the wanted one when it claims and never one that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contracts.adapters.redis import RedisDoor
from contracts.pool import (
    Claimed,
    Device,
    Grant,
    LeaderGrant,
    Mode,
    Refusal,
    Renewal,
    Share,
    admission,
    cpu_report,
)
from contracts.settings import RedisSettings
from tests.integration.redis.kit import TTL_MS, Pool, gpu_report, open_pool

ALL_SETS = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local lease = string.match(key, ':lease:([^:]+):')
  for _, name in ipairs(redis.call('SMEMBERS', key)) do found[#found + 1] = lease .. ' ' .. name end
end
return found
"""
TOPICS = ("requests.a.1", "requests.b.1")
PARTITIONS = 3
DEVICES = {"n1": ("CPU-n1-0",), "n2": ("GPU-1", "GPU-2")}
NO_LIMIT_MS = -1  # overdue as soon as it is unwanted
_T = TypeVar("_T")

nodes = st.sampled_from(sorted(DEVICES))
Pick = tuple[int, int]
picks = st.tuples(st.integers(0, 9), st.integers(0, 5))
topics = st.sampled_from([*TOPICS, TOPICS[0]])  # the first one has owners from the start
partitions = st.integers(0, PARTITIONS - 1)
numbers = st.sets(partitions, min_size=1)
mostly = st.integers(0, 9).map(lambda number: number > 0)


@dataclass
class ModelLease:
    id: str
    token: int
    node: str
    mode: Mode
    shares: tuple[Share, ...]
    state: str = "reserved"
    is_expired: bool = False

    @property
    def is_live(self) -> bool:
        return self.state not in {"quarantine", "deleted"}


@dataclass
class Model:
    leases: list[ModelLease] = field(default_factory=list)
    want: dict[tuple[str, int], str] = field(default_factory=dict)
    own: dict[tuple[str, int], str] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    terms: list[int] = field(default_factory=list)

    def held(self, device: str) -> list[tuple[ModelLease, Share]]:
        present = (lease for lease in self.leases if lease.state != "deleted")
        return [(lease, share) for lease in present for share in lease.shares if share.device == device]

    def forget_wants(self, lease: ModelLease) -> None:
        self.want = {key: wanted for key, wanted in self.want.items() if wanted != lease.id}

    def end(self, lease: ModelLease) -> None:
        lease.state = "quarantine"
        self.forget_wants(lease)
        self.own = {key: owner for key, owner in self.own.items() if owner != lease.id}

    def current(self, lease: ModelLease, token: int) -> str:
        """The refusal of a call that needs a current token, or nothing."""
        if lease.state == "deleted":
            return "GONE"
        if token != lease.token:
            return "FENCED"
        return "" if lease.is_live else "GONE"


def outcome(reply: Refusal | object) -> str:
    return reply.code if isinstance(reply, Refusal) else ""


class PoolMachine(RuleBasedStateMachine):
    pool: Pool
    model: Model

    def __init__(self, loop: asyncio.AbstractEventLoop, redis: RedisDoor) -> None:
        super().__init__()
        self.loop = loop
        self.redis = redis

    def run(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(call)

    @initialize()
    def start_afresh(self) -> None:
        for key in self.run(self.redis.command("KEYS", f"{self.redis.prefix}:*")):
            self.run(self.redis.command("DEL", key))
        self.pool = self.run(open_pool(self.redis))
        self.model = Model(terms=[self.pool.term])
        for node in DEVICES:
            self.register(node)
        for number, node in enumerate(("n1", "n2", "n1")):  # most of what can go wrong needs several workers
            self.start_worker(node)
            self.want(pick=(9, number), topic=TOPICS[0], numbers={number}, is_current=True, somebody=True)
            self.claim(pick=(9, number), topic=TOPICS[0], is_current=True)

    def lease(self, pick: Pick) -> ModelLease:
        """Nearly always one that may still do something; now and then one that ended long ago."""
        kind, number = pick
        live = [lease for lease in self.model.leases if lease.is_live]
        active = [lease for lease in live if lease.state == "active"]
        chosen = (kind > 3 and active) or (kind > 0 and live) or self.model.leases
        return chosen[number % len(chosen)]

    def term(self, *, is_current: bool) -> int:
        return self.model.terms[-1 if is_current else 0]

    def devices(self) -> dict[str, Device]:
        return self.run(self.pool.leases.state()).devices

    # Nodes and leaders

    @rule(node=nodes)
    def register(self, node: str) -> None:
        reports = [cpu_report("n1", 2, 1000)] if node == "n1" else [gpu_report("GPU-1"), gpu_report("GPU-2")]
        self.run(self.pool.node(node, *reports))
        self.model.dead.discard(node)

    @rule(node=nodes, dies=st.integers(0, 4))
    def fall_silent(self, node: str, dies: int) -> None:
        if dies:
            return
        self.run(self.pool.fall_silent(node, 20_000))
        changed = self.run(self.pool.leases.expire_nodes(suspect_ms=5_000, dead_ms=10_000))
        assert changed == ([] if node in self.model.dead else [(node, "dead")])
        self.model.dead.add(node)
        for lease in self.model.leases:
            if lease.node == node and lease.is_live:
                self.model.end(lease)

    @rule(is_current=mostly)
    def confirm_dead(self, *, is_current: bool) -> None:
        term = self.term(is_current=is_current)
        reply = self.run(self.pool.leases.confirm_dead(term, 0))
        if term != self.model.terms[-1]:
            assert outcome(reply) == "TERM"
            return
        ended = [lease for lease in self.model.leases if lease.state == "quarantine" and lease.node in self.model.dead]
        assert isinstance(reply, list)
        assert sorted(reply) == sorted(lease.id for lease in ended)
        for lease in ended:
            lease.state = "deleted"

    @rule()
    def change_leader(self) -> None:
        self.run(self.redis.command("HSET", f"{self.pool.root}:leader", "exp", 1))
        grant = self.run(self.pool.leases.acquire_leader(f"leader-{len(self.model.terms)}", TTL_MS))
        assert isinstance(grant, LeaderGrant)
        assert grant.term > self.model.terms[-1]
        self.model.terms.append(grant.term)

    # Leases

    @rule(
        node=nodes,
        size=st.sampled_from([(0, 0), (100, 20), (100, 20), (500, 60), (1000, 100)]),
        mode=st.sampled_from(["slice", "slice", "slice", "whole", "mig"]),
        mask=st.sampled_from([0, 1, 6]),
        alone=st.booleans(),
        is_current=mostly,
    )
    def commit(self, *, node: str, size: tuple[int, int], mode: Mode, mask: int, alone: bool, is_current: bool) -> None:
        named = DEVICES[node][:1] if alone else DEVICES[node]
        shares = tuple(Share(device, *size, mask) for device in named)
        mode = "cpu" if (node, mode) == ("n1", "slice") else mode
        self.grant(node, shares, mode, is_current=is_current)

    @rule(node=nodes)
    def start_worker(self, node: str) -> None:
        mode: Mode = "cpu" if node == "n1" else "slice"
        known = len(self.model.leases)
        self.grant(node, (Share(DEVICES[node][0], 100, 10),), mode, is_current=True)
        if len(self.model.leases) > known:
            lease = self.model.leases[-1]
            assert self.run(self.pool.leases.bind(lease.id, lease.token, TTL_MS)) is None
            lease.state = "active"

    def grant(self, node: str, shares: tuple[Share, ...], mode: Mode, *, is_current: bool) -> None:
        lease_id = f"lease-{len(self.model.leases)}"
        devices, term = self.devices(), self.term(is_current=is_current)
        expected = self.expected_refusal(node, shares, mode, term, devices)
        gens = {name: device.gen for name, device in devices.items()}
        reply = self.run(self.pool.try_commit(node, *shares, lease_id=lease_id, mode=mode, term=term, gens=gens))
        assert outcome(reply) == expected
        if isinstance(reply, Grant):
            if mode == "whole":
                full = (devices[share.device] for share in shares)
                shares = tuple(
                    Share(d.id, d.memory_mib, d.compute_cap, s.mask) for d, s in zip(full, shares, strict=True)
                )
            assert all(reply.token > lease.token for lease in self.model.leases)
            self.model.leases.append(ModelLease(lease_id, reply.token, node, mode, shares))

    def expected_refusal(
        self, node: str, shares: tuple[Share, ...], mode: Mode, term: int, devices: dict[str, Device]
    ) -> str:
        if term != self.model.terms[-1]:
            return "TERM"
        if node in self.model.dead:
            return "DEAD"
        for share in shares:
            device = devices[share.device]
            if mode == "whole":  # takes everything, whatever was asked for
                share = Share(device.id, device.memory_free_mib, device.compute_free, share.mask)  # noqa: PLW2901
            refusal = admission(device, share, mode)
            if refusal is not None:
                return refusal.code
        return ""

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks)
    def commit_again(self, pick: Pick) -> None:
        lease = self.lease(pick)
        reply = self.run(
            self.pool.try_commit(lease.node, *lease.shares, lease_id=lease.id, term=self.term(is_current=True))
        )
        if not lease.is_live:
            assert outcome(reply) == "GONE"
        else:
            assert isinstance(reply, Grant)
            assert reply.token == lease.token

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, is_current=mostly)
    def bind(self, *, pick: Pick, is_current: bool) -> None:
        lease = self.lease(pick)
        token = lease.token - (not is_current)
        expected = self.model.current(lease, token)
        if not expected and lease.state == "draining":
            expected = "DRAINING"
        if not expected and lease.is_expired:
            expected = "EXPIRED"
        assert outcome(self.run(self.pool.leases.bind(lease.id, token, TTL_MS))) == expected
        if not expected:
            lease.state = "active"

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, is_current=mostly)
    def renew(self, *, pick: Pick, is_current: bool) -> None:
        lease = self.lease(pick)
        token = lease.token - (not is_current)
        expected = self.model.current(lease, token) or ("EXPIRED" if lease.is_expired else "")
        reply = self.run(self.pool.leases.renew(lease.id, token, TTL_MS))
        assert outcome(reply) == expected
        if isinstance(reply, Renewal):
            wanted = {key for key, name in self.model.want.items() if name == lease.id}
            owned = {key for key, name in self.model.own.items() if name == lease.id}
            assert (reply.state, set(reply.wanted), set(reply.lost)) == (lease.state, wanted, owned - wanted)

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, is_current=mostly)
    def drain(self, *, pick: Pick, is_current: bool) -> None:
        lease, term = self.lease(pick), self.term(is_current=is_current)
        expected = "TERM" if term != self.model.terms[-1] else "" if lease.is_live else "GONE"
        assert outcome(self.run(self.pool.leases.drain(term, lease.id))) == expected
        if not expected and lease.state == "reserved":
            self.model.end(lease)
        elif not expected:
            lease.state = "draining"
            self.model.forget_wants(lease)

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, is_current=mostly)
    def release(self, *, pick: Pick, is_current: bool) -> None:
        lease = self.lease(pick)
        token = lease.token - (not is_current)
        expected = self.model.current(lease, token)
        assert outcome(self.run(self.pool.leases.release(lease.id, token))) == expected
        if not expected:
            self.model.end(lease)

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks)
    def expire(self, pick: Pick) -> None:
        lease = self.lease(pick)
        if lease.is_live:
            self.run(self.pool.let_expire(lease.id))
            lease.is_expired = True
            self.renew(pick=pick, is_current=True)

    @rule()
    def reap(self) -> None:
        expired = [lease for lease in self.model.leases if lease.is_live and lease.is_expired]
        assert set(self.run(self.pool.leases.reap())) == {lease.id for lease in expired}
        for lease in expired:
            self.model.end(lease)

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, is_current=mostly)
    def confirm(self, *, pick: Pick, is_current: bool) -> None:
        lease = self.lease(pick)
        expected = "GONE" if lease.state == "deleted" else "" if is_current else "FENCED"
        if not expected and lease.is_live:
            expected = "NO"
        assert outcome(self.run(self.pool.leases.confirm(lease.id, lease.token - (not is_current)))) == expected
        if not expected:
            lease.state = "deleted"

    # Partitions

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, topic=topics, numbers=numbers, is_current=mostly, somebody=mostly)
    def want(self, *, pick: Pick, topic: str, numbers: set[int], is_current: bool, somebody: bool) -> None:
        lease, term = self.lease(pick), self.term(is_current=is_current)
        expected = ""
        if somebody and (lease.state != "active" or lease.is_expired):
            expected = "UNAVAIL"
        if term != self.model.terms[-1]:
            expected = "TERM"
        wanted = dict.fromkeys(numbers, lease.id if somebody else None)
        assert outcome(self.run(self.pool.assignments.want(term, topic, wanted))) == expected
        for partition in numbers if not expected else ():
            self.model.want.pop((topic, partition), None)
            if somebody:
                self.model.want[topic, partition] = lease.id

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, topic=topics, is_current=mostly)
    def claim(self, *, pick: Pick, topic: str, is_current: bool) -> None:
        lease = self.lease(pick)
        token = lease.token - (not is_current)
        claimed = self.run(self.pool.assignments.claim(lease.id, token, topic, range(PARTITIONS)))
        code = self.model.current(lease, token)
        if not code:
            code = {"draining": "DRAINING", "reserved": "NO"}.get(lease.state, "EXPIRED" if lease.is_expired else "")
        expected = {p: code or self.expected_claim(lease, (topic, p)) for p in range(PARTITIONS)}
        granted = tuple(p for p, refused in expected.items() if not refused)
        assert isinstance(claimed, Claimed)
        assert claimed.granted == granted
        assert claimed.refused == {p: refused for p, refused in expected.items() if refused}
        self.model.own |= dict.fromkeys(((topic, p) for p in granted), lease.id)

    def expected_claim(self, lease: ModelLease, key: tuple[str, int]) -> str:
        if self.model.want.get(key) != lease.id:
            return "NOT_WANTED"
        return "OWNED" if self.model.own.get(key, lease.id) != lease.id else ""

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, topic=topics, numbers=numbers, is_current=mostly)
    def give_back(self, *, pick: Pick, topic: str, numbers: set[int], is_current: bool) -> None:
        lease = self.lease(pick)
        token = lease.token - (not is_current)
        released = self.run(self.pool.assignments.release(lease.id, token, topic, sorted(numbers)))
        mine = [p for p in sorted(numbers) if is_current and self.model.own.get((topic, p)) == lease.id]
        assert released == tuple(mine)
        for partition in mine:
            del self.model.own[topic, partition]

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks, topic=topics)
    def hand_over(self, pick: Pick, topic: str) -> None:
        """The heir tries at once, and tries to give back what it did not get."""
        everything = set(range(PARTITIONS))
        self.want(pick=pick, topic=topic, numbers=everything, is_current=True, somebody=True)
        self.claim(pick=pick, topic=topic, is_current=True)
        heir = self.lease(pick)
        if self.model.own.get((topic, 0)) != heir.id:
            assert 0 not in self.run(self.pool.assignments.release(heir.id, heir.token, topic, [0]))
        self.claim(pick=pick, topic=topic, is_current=True)

    @rule(topic=topics, partition=partitions, is_current=mostly)
    def evict(self, *, topic: str, partition: int, is_current: bool) -> None:
        term, key = self.term(is_current=is_current), (topic, partition)
        owner = self.model.own.get(key)
        expected = "NO" if owner is None or self.model.want.get(key) == owner else ""
        if term != self.model.terms[-1]:
            expected = "TERM"
        reply = self.run(self.pool.assignments.evict(term, topic, partition, NO_LIMIT_MS))
        assert outcome(reply) == expected
        if not expected:
            del self.model.own[key]

    # What always holds

    @invariant()
    def the_server_agrees_with_the_model(self) -> None:
        state = self.run(self.pool.leases.state())
        present = {lease.id: lease for lease in self.model.leases if lease.state != "deleted"}
        assert {(lease.id, lease.token, lease.state) for lease in state.leases.values()} == {
            (lease.id, lease.token, lease.state) for lease in present.values()
        }
        assert all(state.leases[name].shares == lease.shares for name, lease in present.items())
        tokens = {lease.id: lease.token for lease in self.model.leases}
        want = {(t.topic, p): name for t in state.topics.values() for p, name in t.want.items()}
        own = {(t.topic, p): owner for t in state.topics.values() for p, owner in t.own.items()}
        assert want == self.model.want
        assert own == {key: (name, tokens[name]) for key, name in self.model.own.items()}
        assert all(present[name].state == "active" for name in want.values())
        assert all(present[name].is_live for name, _ in own.values())
        for topic in state.topics.values():
            for partition in {*topic.want, *topic.own}:
                assert topic.is_settled(partition) != (partition in topic.unsettled_since)
        for device in state.devices.values():
            self.check_device(device)

    def check_device(self, device: Device) -> None:
        held = self.model.held(device.id)
        taken = Device(
            id=device.id, node=device.node, kind=device.kind, name=device.name, memory_mib=device.memory_mib,
            compute_cap=device.compute_cap, lease_slots=device.lease_slots, gen=device.gen,
            memory_used_mib=sum(share.memory_mib for _, share in held),
            compute_used=sum(share.compute for _, share in held),
            lease_count=len(held),
            mask=sum(share.mask for _, share in held),  # a sum equals the union only while they are disjoint
            mode=held[0][0].mode if held else "free",
        )  # fmt: skip
        assert device == taken, msgspec.structs.asdict(device)
        assert device.memory_free_mib >= 0
        assert device.compute_free >= 0
        assert device.lease_count <= (1 if device.mode == "whole" else device.lease_slots)
        assert len({lease.mode for lease, _ in held}) <= 1

    @invariant()
    def what_a_lease_owns_is_written_in_both_places(self) -> None:
        for kind, held in (("parts", self.model.own), ("want", self.model.want)):
            pattern = f"{self.pool.root}:lease:*:{kind}"
            found = self.run(self.redis.command("EVAL", ALL_SETS, 0, pattern))
            assert sorted(found) == sorted(f"{name} {topic}/{p}" for (topic, p), name in held.items())


def test_the_pool_keeps_its_invariants_whatever_arrives_in_whatever_order(redis_settings: RedisSettings) -> None:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        redis = loop.run_until_complete(RedisDoor.from_settings(redis_settings))
        try:
            run_state_machine_as_test(
                lambda: PoolMachine(loop, redis),  # type: ignore[arg-type]  # it only wants to be called
                settings=hypothesis_settings(max_examples=20, stateful_step_count=40, deadline=None),
            )
        finally:
            loop.run_until_complete(redis.close())
