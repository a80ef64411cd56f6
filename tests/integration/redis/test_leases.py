import asyncio

import pytest

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.pool import Grant, Refusal, Renewal, Share
from tests.integration.redis.kit import TTL_MS, Pool, cpu, gpu_report


def code(reply: object) -> str:
    assert isinstance(reply, Refusal), reply
    return reply.code


async def test_a_lease_goes_from_reserved_to_deleted_and_gives_back_exactly_what_it_took(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.reserved("n1", cpu("n1", memory_mib=300, compute=50))
    before = (await pool.leases.state()).leases[grant.lease]
    assert (before.state, before.token, before.expires_unix_ms) == ("reserved", grant.token, grant.expires_unix_ms)
    assert before.shares == (Share("CPU-n1-0", 300, 50),)
    assert await pool.leases.bind(grant.lease, grant.token, TTL_MS, {"engine_pid": "12"}) is None
    state = await pool.leases.state()
    assert (state.leases[grant.lease].state, state.leases[grant.lease].bound) == ("active", {"engine_pid": "12"})
    device = state.devices["CPU-n1-0"]
    assert (device.memory_used_mib, device.compute_used, device.lease_count, device.mode) == (300, 50, 1, "cpu")

    assert await pool.leases.drain(pool.term, grant.lease) is None
    assert await pool.leases.release(grant.lease, grant.token, "finished") is None
    state = await pool.leases.state()
    ended = state.leases[grant.lease]
    assert (ended.state, ended.reason, ended.expires_unix_ms, ended.is_live) == ("quarantine", "finished", 0, False)
    assert state.devices["CPU-n1-0"].memory_used_mib == 300

    assert await pool.leases.confirm(grant.lease, grant.token) is None
    state = await pool.leases.state()
    device = state.devices["CPU-n1-0"]
    assert state.leases == {}
    assert (device.memory_used_mib, device.compute_used, device.lease_count, device.mode) == (0, 0, 0, "free")


async def test_the_same_id_gets_the_same_grant_and_an_ended_one_none(pool: Pool) -> None:
    await pool.node("n1")
    first = await pool.try_commit("n1", cpu("n1"), lease_id="a")
    assert isinstance(first, Grant)
    assert await pool.try_commit("n1", cpu("n1"), lease_id="a") == first
    assert (await pool.leases.state()).devices["CPU-n1-0"].lease_count == 1
    await pool.leases.release("a", first.token)
    assert code(await pool.try_commit("n1", cpu("n1"), lease_id="a")) == "GONE"
    await pool.leases.confirm("a", first.token)
    assert code(await pool.try_commit("n1", cpu("n1"), lease_id="a")) == "GONE"


async def test_a_grant_is_all_or_nothing(pool: Pool) -> None:
    await pool.node("n1", gpu_report("GPU-1"), gpu_report("GPU-2", memory_mib=100))
    gang = (Share("GPU-1", 200, 50), Share("GPU-2", 200, 50))
    assert code(await pool.try_commit("n1", *gang, mode="slice")) == "FULL"
    assert code(await pool.try_commit("n1", Share("GPU-1", 1, 1), Share("GPU-1", 1, 1), mode="slice")) == "PLACE"
    state = await pool.leases.state()
    assert state.leases == {}
    assert [device.lease_count for device in state.devices.values()] == [0, 0]


async def test_each_reason_to_refuse_has_its_code(pool: Pool) -> None:
    await pool.node("n1", gpu_report("GPU-1", lease_slots=2))
    await pool.node("n2")
    one = Share("GPU-1", 100, 10)
    assert code(await pool.try_commit("n1", one, mode="slice", term=pool.term - 1)) == "TERM"
    assert code(await pool.try_commit("n1", one, mode="slice", gens={"GPU-1": 7})) == "STALE"
    assert code(await pool.try_commit("n3", one, mode="slice")) == "UNAVAIL"
    assert code(await pool.try_commit("n1", Share("GPU-9", 1, 1), mode="slice")) == "UNAVAIL"
    assert code(await pool.try_commit("n2", one, mode="slice")) == "PLACE"
    assert code(await pool.try_commit("n1", one, mode="cpu")) == "PLACE"
    await pool.reserved("n1", one, mode="slice")
    assert code(await pool.try_commit("n1", one, mode="mps")) == "MODE"
    assert code(await pool.try_commit("n1", one, mode="whole")) == "MODE"
    assert code(await pool.try_commit("n1", Share("GPU-1", 901, 10), mode="slice")) == "FULL"
    assert code(await pool.try_commit("n1", Share("GPU-1", 100, 91), mode="slice")) == "FULL"
    await pool.reserved("n1", one, mode="slice")
    assert code(await pool.try_commit("n1", one, mode="slice")) == "FULL"


async def test_a_whole_lease_takes_all_of_its_device(pool: Pool) -> None:
    await pool.node("n1", gpu_report("GPU-1"))
    grant = await pool.reserved("n1", Share("GPU-1", 10, 10), mode="whole")
    state = await pool.leases.state()
    assert state.leases[grant.lease].shares == (Share("GPU-1", 1000, 100),)
    assert (state.devices["GPU-1"].memory_free_mib, state.devices["GPU-1"].compute_free) == (0, 0)
    assert code(await pool.try_commit("n1", Share("GPU-1", 0, 0), mode="whole")) == "MODE"


async def test_mig_leases_hold_disjoint_memory_slices(pool: Pool) -> None:
    await pool.node("n1", gpu_report("GPU-1"))
    low = await pool.reserved("n1", Share("GPU-1", 100, 10, mask=0b0011), mode="mig")
    await pool.reserved("n1", Share("GPU-1", 100, 10, mask=0b1100), mode="mig")
    assert code(await pool.try_commit("n1", Share("GPU-1", 100, 10, mask=0b0110), mode="mig")) == "PLACE"
    assert (await pool.leases.state()).devices["GPU-1"].mask == 0b1111
    await pool.leases.release(low.lease, low.token)
    await pool.leases.confirm(low.lease, low.token)
    assert (await pool.leases.state()).devices["GPU-1"].mask == 0b1100


async def test_a_lease_without_shares_still_names_its_node(pool: Pool) -> None:
    registration = await pool.node("n1")
    grant = await pool.try_commit("n1", mode="none")
    assert isinstance(grant, Grant)
    leases = await pool.leases.heartbeat("n1", registration.incarnation)
    assert isinstance(leases, list)
    assert [(lease.id, lease.shares) for lease in leases] == [(grant.lease, ())]


async def test_a_tenant_stays_within_its_quota_until_capacity_is_confirmed_free(pool: Pool) -> None:
    await pool.node("n1")
    await pool.leases.set_quota("acme", 40)
    grant = await pool.reserved("n1", cpu("n1", compute=30), tenant="acme")
    assert code(await pool.try_commit("n1", cpu("n1", compute=30), tenant="acme")) == "QUOTA"
    await pool.leases.release(grant.lease, grant.token)
    assert code(await pool.try_commit("n1", cpu("n1", compute=30), tenant="acme")) == "QUOTA"
    await pool.leases.confirm(grant.lease, grant.token)
    again = await pool.reserved("n1", cpu("n1", compute=30), tenant="acme")
    await pool.leases.set_quota("acme", None)
    await pool.leases.release(again.lease, again.token)
    await pool.leases.confirm(again.lease, again.token)
    assert await pool.redis.command("EXISTS", f"{pool.root}:tenant:acme") == 0


async def test_only_the_current_token_counts(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.active("n1")
    stale = grant.token - 1
    assert code(await pool.leases.bind(grant.lease, stale, TTL_MS)) == "FENCED"
    assert code(await pool.leases.renew(grant.lease, stale, TTL_MS)) == "FENCED"
    assert code(await pool.leases.release(grant.lease, stale)) == "FENCED"
    assert await pool.leases.release(grant.lease, grant.token) is None
    assert code(await pool.leases.release(grant.lease, grant.token)) == "GONE"
    assert code(await pool.leases.renew(grant.lease, grant.token, TTL_MS)) == "GONE"
    assert code(await pool.leases.bind(grant.lease, grant.token, TTL_MS)) == "GONE"
    assert code(await pool.leases.confirm(grant.lease, stale)) == "FENCED"
    assert await pool.leases.confirm(grant.lease, grant.token) is None
    assert code(await pool.leases.confirm(grant.lease, grant.token)) == "GONE"
    assert code(await pool.leases.renew(grant.lease, grant.token, TTL_MS)) == "GONE"


async def test_capacity_of_a_living_lease_cannot_be_confirmed_away(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.active("n1")
    assert code(await pool.leases.confirm(grant.lease, grant.token)) == "NO"


async def test_an_expired_lease_cannot_be_renewed_and_is_reaped_once(pool: Pool) -> None:
    await pool.node("n1")
    first, second = await pool.active("n1"), await pool.reserved("n1")
    assert await pool.leases.reap() == []
    await pool.let_expire(first.lease)
    await pool.let_expire(second.lease)
    assert code(await pool.leases.renew(first.lease, first.token, TTL_MS)) == "EXPIRED"
    assert code(await pool.leases.bind(second.lease, second.token, TTL_MS)) == "EXPIRED"
    assert await pool.leases.reap(1) == [first.lease]
    assert await pool.leases.reap() == [second.lease]
    assert await pool.leases.reap() == []
    state = await pool.leases.state()
    assert {lease.state for lease in state.leases.values()} == {"quarantine"}
    assert state.devices["CPU-n1-0"].lease_count == 2


async def test_a_lease_expires_by_the_servers_clock(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.try_commit("n1", cpu("n1"), start_limit_ms=1)
    assert isinstance(grant, Grant)
    async with asyncio.timeout(5):
        while await pool.leases.reap() != [grant.lease]:
            await asyncio.sleep(0)


async def test_a_reserved_lease_keeps_its_start_limit_whatever_is_renewed(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.reserved("n1")
    renewal = await pool.leases.renew(grant.lease, grant.token, 10 * TTL_MS)
    assert isinstance(renewal, Renewal)
    assert renewal.state == "reserved"
    assert renewal.expires_in_ms <= TTL_MS
    assert (await pool.leases.state()).leases[grant.lease].expires_unix_ms == grant.expires_unix_ms


async def test_a_renewal_never_moves_the_expiry_back(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.active("n1")
    before = (await pool.leases.state()).leases[grant.lease].expires_unix_ms
    renewal = await pool.leases.renew(grant.lease, grant.token, 5)
    assert isinstance(renewal, Renewal)
    assert renewal.expires_in_ms > 5
    assert (await pool.leases.state()).leases[grant.lease].expires_unix_ms == before


async def test_a_revoked_lease_is_not_renewed_beyond_its_revocation(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.reserved("n1")
    assert await pool.leases.bind(grant.lease, grant.token, 1000) is None
    assert await pool.leases.drain(pool.term, grant.lease, 3000) is None
    assert await pool.leases.drain(pool.term, grant.lease, 9000) is None
    renewal = await pool.leases.renew(grant.lease, grant.token, TTL_MS)
    assert isinstance(renewal, Renewal)
    assert renewal.state == "draining"
    assert 1000 < renewal.expires_in_ms <= 3000
    assert renewal.revoke_unix_ms == renewal.now_unix_ms + renewal.expires_in_ms
    assert code(await pool.leases.bind(grant.lease, grant.token, TTL_MS)) == "DRAINING"


async def test_draining_a_lease_that_has_not_started_ends_it(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.reserved("n1")
    assert code(await pool.leases.drain(pool.term - 1, grant.lease)) == "TERM"
    assert await pool.leases.drain(pool.term, grant.lease) is None
    assert (await pool.leases.state()).leases[grant.lease].reason == "drained"
    assert code(await pool.leases.drain(pool.term, grant.lease)) == "GONE"
    assert code(await pool.leases.drain(pool.term, "never-was")) == "GONE"


async def test_tokens_rise_in_the_order_of_grants_even_when_the_data_set_was_lost(redis: RedisDoor) -> None:
    leases = Leases(redis)
    tokens: list[int] = []
    epochs: list[int] = []
    for _ in range(2):
        leader = await leases.acquire_leader("leader", TTL_MS)
        assert leader is not None
        lost = Pool(redis, leader.term)
        await lost.node("n1")
        tokens += [(await lost.reserved("n1")).token for _ in range(3)]
        epochs.append((await leases.state()).epoch)
        for key in await redis.command("KEYS", f"{redis.prefix}:*"):
            await redis.command("DEL", key)
    assert tokens == sorted(set(tokens))
    assert epochs[1] > epochs[0]


async def test_a_counter_that_runs_ahead_of_the_clock_is_followed(pool: Pool) -> None:
    await pool.node("n1")
    ahead = await pool.redis.server_unix_ms() * 1024  # beyond 10^14, where Lua prints exponents
    await pool.redis.command("SET", f"{pool.root}:tok", ahead)
    assert [(await pool.reserved("n1")).token for _ in range(2)] == [ahead + 1, ahead + 2]


async def test_one_leads_and_a_standby_follows_with_a_higher_term(redis: RedisDoor) -> None:
    leases = Leases(redis)
    first = await leases.acquire_leader("a", TTL_MS)
    assert first is not None
    assert await leases.acquire_leader("b", TTL_MS) is None
    again = await leases.acquire_leader("a", TTL_MS)
    assert again is not None
    assert (again.term, again.epoch) == (first.term, first.epoch)
    assert again.expires_unix_ms >= first.expires_unix_ms
    assert await leases.resign_leader("a", first.term) is None
    assert code(await leases.resign_leader("a", first.term)) == "TERM"
    second = await leases.acquire_leader("b", TTL_MS)
    assert second is not None
    assert second.term > first.term
    assert code(await Pool(redis, first.term).try_commit("n1", term=first.term)) == "TERM"


async def test_a_leader_that_lapsed_comes_back_under_a_new_term(redis: RedisDoor) -> None:
    leases = Leases(redis)
    first = await leases.acquire_leader("a", TTL_MS)
    assert first is not None
    await redis.command("HSET", f"{redis.prefix}:{{default}}:leader", "exp", 1)
    second = await leases.acquire_leader("a", TTL_MS)
    assert second is not None
    assert second.term > first.term


async def test_every_change_is_an_event_and_the_state_says_from_where_to_follow(pool: Pool) -> None:
    start = (await pool.leases.state()).event_id
    await pool.node("n1")
    grant = await pool.owner("n1", "t", [0, 1])
    await pool.leases.renew(grant.lease, grant.token, TTL_MS)
    await pool.leases.drain(pool.term, grant.lease)
    await pool.leases.release(grant.lease, grant.token)
    await pool.leases.confirm(grant.lease, grant.token)
    last, events = await pool.leases.events(start, 0)
    kinds = ["node", "commit", "bind", "want", "claim", "drain", "release", "end", "confirm"]
    assert [event.kind for event in events] == kinds
    assert {event.lease for event in events if event.kind not in {"node", "want"}} == {grant.lease}
    assert [(event.topic, event.partitions) for event in events if event.kind == "claim"] == [("t", (0, 1))]
    assert await pool.leases.events(last, 0) == (last, [])
    assert await pool.leases.events("$", 0) == (last, [])


async def test_a_waiting_follower_wakes_on_a_change(pool: Pool) -> None:
    start = (await pool.leases.state()).event_id
    async with asyncio.TaskGroup() as group:
        follower = group.create_task(pool.leases.events(start, 10_000), name="follower")
        await asyncio.sleep(0)
        await pool.node("n1")
    assert [event.kind for event in follower.result()[1]] == ["node"]


@pytest.mark.parametrize("holders", [2, 8])
async def test_of_many_that_want_to_lead_at_once_one_does(redis: RedisDoor, holders: int) -> None:
    leases = Leases(redis)
    grants = await asyncio.gather(*(leases.acquire_leader(f"h{n}", TTL_MS) for n in range(holders)))
    assert sum(grant is not None for grant in grants) == 1
