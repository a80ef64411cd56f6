import pytest

from contracts.pool import DeviceReport, Lease, NodeReport, NodeState, Refusal, Registration, Share, cpu_report
from contracts.states import NODE
from tests.integration.redis.kit import TTL_MS, Pool, cpu, gpu_report

SUSPECT_MS, DEAD_MS = 3000, 10_000


def code(reply: object) -> str:
    assert isinstance(reply, Refusal), reply
    return reply.code


async def beat(pool: Pool, node: str, registration: Registration) -> list[Lease] | Refusal:
    return await pool.leases.heartbeat(node, registration.incarnation, {"cpu_percent": 12.5})


async def judge(pool: Pool) -> list[tuple[str, NodeState]]:
    return await pool.leases.expire_nodes(suspect_ms=SUSPECT_MS, dead_ms=DEAD_MS)


async def die(pool: Pool, node: str) -> None:
    await pool.fall_silent(node, DEAD_MS + 1000)
    assert await judge(pool) == [(node, "dead")]


async def state_of(pool: Pool, node: str) -> NodeState:
    return (await pool.leases.state()).nodes[node].state


async def test_a_registered_node_is_ready_and_says_what_it_has(pool: Pool) -> None:
    report = NodeReport(id="n1", host="h", boot_id="b1", cores=4, memory_mib=16_000, labels={"zone": "å", "rack": "7"})
    reply = await pool.leases.register_node(report, [cpu_report("n1", 4, 8000), gpu_report("GPU-1")])
    assert isinstance(reply, Registration)
    assert isinstance(await beat(pool, "n1", reply), list)
    state = await pool.leases.state()
    node = state.nodes["n1"]
    assert (node.incarnation, node.state, node.host, node.boot_id) == (reply.incarnation, "ready", "h", "b1")
    assert (node.cores, node.memory_mib, node.labels) == (4, 16_000, {"zone": "å", "rack": "7"})
    assert node.stats == {"cpu_percent": 12.5}
    assert state.now_unix_ms - node.heartbeat_unix_ms < 5000
    assert (state.epoch, set(state.devices)) == (reply.epoch, {"CPU-n1-0", "GPU-1"})
    assert state.devices["CPU-n1-0"].compute_cap == 400


async def test_a_later_agent_fences_the_earlier_one_off(pool: Pool) -> None:
    first = await pool.node("n1")
    second = await pool.node("n1")
    assert second.incarnation > first.incarnation
    assert code(await beat(pool, "n1", first)) == "FENCED"
    assert code(await pool.leases.set_device_health("n1", first.incarnation, "CPU-n1-0", "lost")) == "FENCED"
    assert await beat(pool, "n1", second) == []


async def test_a_restarted_agent_finds_its_leases_and_their_counters(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.active("n1", cpu("n1", compute=30))
    before = (await pool.leases.state()).devices
    again = await pool.node("n1")
    leases = await beat(pool, "n1", again)
    assert isinstance(leases, list)
    assert [(lease.id, lease.token, lease.state) for lease in leases] == [(grant.lease, grant.token, "active")]
    assert (await pool.leases.state()).devices == before


async def test_a_heartbeat_lists_a_lease_until_it_is_confirmed(pool: Pool) -> None:
    registration = await pool.node("n1")
    grant = await pool.active("n1")
    await pool.leases.release(grant.lease, grant.token)
    leases = await beat(pool, "n1", registration)
    assert isinstance(leases, list)
    assert [lease.state for lease in leases] == ["quarantine"]
    await pool.leases.confirm(grant.lease, grant.token)
    assert await beat(pool, "n1", registration) == []


async def test_an_unknown_node_is_told_to_register(pool: Pool) -> None:
    assert code(await pool.leases.heartbeat("n1", 1)) == "GONE"
    assert code(await pool.leases.set_node_state("n1", "draining")) == "GONE"
    assert code(await pool.leases.set_device_health("n1", 1, "CPU-n1-0", "ok")) == "GONE"
    assert code(await pool.leases.forget_node("n1")) == "GONE"


async def test_a_silent_node_is_suspect_then_dead_and_a_heartbeat_clears_the_suspicion(pool: Pool) -> None:
    registration = await pool.node("n1")
    assert await judge(pool) == []
    await pool.fall_silent("n1", SUSPECT_MS + 1000)
    assert await judge(pool) == [("n1", "suspect")]
    assert await judge(pool) == []
    assert code(await pool.try_commit("n1", cpu("n1"))) == "UNAVAIL"
    assert await beat(pool, "n1", registration) == []
    assert await state_of(pool, "n1") == "ready"
    await die(pool, "n1")
    assert code(await beat(pool, "n1", registration)) == "DEAD"
    assert code(await pool.try_commit("n1", cpu("n1"))) == "DEAD"


async def test_a_dead_nodes_leases_end_and_are_confirmed_by_the_leader_one_ttl_later(pool: Pool) -> None:
    await pool.node("n1")
    await pool.node("n2")
    owner = await pool.owner("n1", "t", [0, 1])
    reserved = await pool.reserved("n1")
    elsewhere = await pool.active("n2")
    await pool.leases.release(elsewhere.lease, elsewhere.token)
    await die(pool, "n1")
    state = await pool.leases.state()
    assert {state.leases[grant.lease].reason for grant in (owner, reserved)} == {"node dead"}
    assert state.topics["t"].own == {}
    assert await pool.leases.confirm_dead(pool.term, TTL_MS) == []
    assert code(await pool.leases.confirm_dead(pool.term - 1, 0)) == "TERM"
    confirmed = await pool.leases.confirm_dead(pool.term, 0)
    assert isinstance(confirmed, list)
    assert sorted(confirmed) == sorted([owner.lease, reserved.lease])
    state = await pool.leases.state()
    assert set(state.leases) == {elsewhere.lease}
    assert state.devices["CPU-n1-0"].lease_count == 0
    assert code(await pool.leases.confirm(owner.lease, owner.token)) == "GONE"


async def test_a_node_that_returns_confirms_its_own_leases(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.active("n1")
    await die(pool, "n1")
    await pool.node("n1")
    assert await state_of(pool, "n1") == "ready"
    assert await pool.leases.confirm_dead(pool.term, 0) == []
    assert await pool.leases.confirm(grant.lease, grant.token) is None


async def test_what_an_operator_asked_of_a_node_outlives_its_agent(pool: Pool) -> None:
    await pool.node("n1")
    assert await pool.leases.set_node_state("n1", "draining") is None
    assert code(await pool.try_commit("n1", cpu("n1"))) == "UNAVAIL"
    await die(pool, "n1")
    await pool.node("n1")
    assert await state_of(pool, "n1") == "draining"
    await die(pool, "n1")
    assert await pool.leases.set_node_state("n1", "ready") is None
    assert await state_of(pool, "n1") == "dead"
    await pool.node("n1")
    assert await state_of(pool, "n1") == "ready"


@pytest.mark.parametrize("before", ["ready", "suspect", "draining", "cordoned"])
@pytest.mark.parametrize("after", ["ready", "draining", "cordoned"])
async def test_the_server_and_the_table_agree_on_what_an_operator_may_ask(
    pool: Pool, before: NodeState, after: NodeState
) -> None:
    await pool.node("n1")
    await pool.redis.command("HSET", f"{pool.root}:node:n1", "state", before)
    refusal = await pool.leases.set_node_state("n1", after)
    by_heartbeat = (before, after) == ("suspect", "ready")  # only the node itself can clear a suspicion
    may = before == after or (NODE.allows(before, after) and not by_heartbeat)
    assert (refusal is None) == may, refusal
    assert await state_of(pool, "n1") == (after if may else before)


async def test_a_plan_made_before_a_downgrade_is_stale(pool: Pool) -> None:
    registration = await pool.node("n1")
    gens = {"CPU-n1-0": (await pool.leases.state()).devices["CPU-n1-0"].gen}
    await pool.leases.set_device_health("n1", registration.incarnation, "CPU-n1-0", "degraded")
    assert code(await pool.try_commit("n1", cpu("n1"), gens=gens)) == "STALE"
    await pool.reserved("n1")
    await pool.leases.set_node_state("n1", "draining")
    await pool.leases.set_node_state("n1", "ready")
    gens_after = (await pool.leases.state()).devices["CPU-n1-0"].gen
    assert gens_after > gens["CPU-n1-0"]


async def test_an_unhealthy_device_gets_no_lease_and_a_lost_one_loses_its_own(pool: Pool) -> None:
    registration = await pool.node("n1", gpu_report("GPU-1"), gpu_report("GPU-2"))
    here = await pool.active("n1", Share("GPU-1", 10, 10), mode="slice")
    there = await pool.active("n1", Share("GPU-2", 10, 10), mode="slice")
    health = pool.leases.set_device_health
    assert await health("n1", registration.incarnation, "GPU-1", "unhealthy") is None
    assert code(await pool.try_commit("n1", Share("GPU-1", 10, 10), mode="slice")) == "UNAVAIL"
    assert (await pool.leases.state()).leases[here.lease].is_live
    assert await health("n1", registration.incarnation, "GPU-1", "lost") is None
    leases = (await pool.leases.state()).leases
    assert (leases[here.lease].reason, leases[there.lease].state) == ("device lost", "active")
    assert code(await health("n1", registration.incarnation, "GPU-7", "ok")) == "PLACE"


async def test_a_device_that_is_not_reported_any_more_is_lost(pool: Pool) -> None:
    await pool.node("n1", gpu_report("GPU-1"), gpu_report("GPU-2"))
    grant = await pool.active("n1", Share("GPU-2", 10, 10), mode="slice")
    before = (await pool.leases.state()).devices
    await pool.node("n1", gpu_report("GPU-1"))
    state = await pool.leases.state()
    assert state.devices["GPU-1"] == before["GPU-1"]
    assert (state.devices["GPU-2"].health, state.leases[grant.lease].reason) == ("lost", "device lost")
    assert state.devices["GPU-2"].gen > before["GPU-2"].gen


async def test_capacity_never_falls_below_what_is_used(pool: Pool) -> None:
    await pool.node("n1", gpu_report("GPU-1", memory_mib=1000))
    await pool.active("n1", Share("GPU-1", 600, 10), mode="slice")
    gen = (await pool.leases.state()).devices["GPU-1"].gen
    await pool.node("n1", gpu_report("GPU-1", memory_mib=500))
    device = (await pool.leases.state()).devices["GPU-1"]
    assert (device.memory_mib, device.memory_free_mib) == (600, 0)
    assert device.gen > gen


async def test_a_device_moves_to_another_node_only_when_nothing_holds_it(pool: Pool) -> None:
    await pool.node("n1", gpu_report("GPU-1"))
    grant = await pool.active("n1", Share("GPU-1", 10, 10), mode="slice")
    move = NodeReport(id="n2", host="h", cores=1, memory_mib=1)
    devices: list[DeviceReport] = [gpu_report("GPU-1")]
    assert code(await pool.leases.register_node(move, devices)) == "PLACE"
    assert set((await pool.leases.state()).nodes) == {"n1"}
    await pool.leases.release(grant.lease, grant.token)
    await pool.leases.confirm(grant.lease, grant.token)
    assert isinstance(await pool.leases.register_node(move, devices), Registration)
    assert (await pool.leases.state()).devices["GPU-1"].node == "n2"


async def test_only_a_dead_node_without_leases_is_forgotten_and_leaves_nothing(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.active("n1")
    assert code(await pool.leases.forget_node("n1")) == "NO"
    await die(pool, "n1")
    assert code(await pool.leases.forget_node("n1")) == "NO"
    await pool.leases.confirm(grant.lease, grant.token)
    assert await pool.leases.forget_node("n1") is None
    state = await pool.leases.state()
    assert (state.nodes, state.devices) == ({}, {})
    left = {key.rpartition("}:")[2] for key in await pool.redis.command("KEYS", f"{pool.root}:*")}
    assert left == {"epoch", "ev", "leader", "tok", f"ended:{grant.lease}"}
