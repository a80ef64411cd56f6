import asyncio

from contracts.pool import Refusal, Renewal
from contracts.states import LEASE
from tests.integration.redis.kit import TTL_MS, Pool

TOPIC = "headrace.requests.digits.2"


def code(reply: object) -> str:
    assert isinstance(reply, Refusal), reply
    return reply.code


async def test_a_wanted_partition_is_claimed_by_the_wanted_lease_only(pool: Pool) -> None:
    await pool.node("n1")
    wanted, other = await pool.active("n1"), await pool.active("n1")
    await pool.want(TOPIC, {0: wanted.lease, 1: wanted.lease})
    claim = pool.assignments.claim
    assert (await claim(other.lease, other.token, TOPIC, [0])).refused == {0: "NOT_WANTED"}
    claimed = await claim(wanted.lease, wanted.token, TOPIC, [0, 2, 1])
    assert (claimed.granted, claimed.refused) == ((0, 1), {2: "NOT_WANTED"})
    assert (await claim(wanted.lease, wanted.token, TOPIC, [1])).granted == (1,)
    topic = (await pool.leases.state()).topics[TOPIC]
    assert topic.own == {0: (wanted.lease, wanted.token), 1: (wanted.lease, wanted.token)}
    assert topic.unsettled_since == {}


async def test_a_partition_is_handed_over_without_a_moment_of_two_owners(pool: Pool) -> None:
    await pool.node("n1")
    old = await pool.owner("n1", TOPIC, [0, 1, 2, 3])
    new = await pool.active("n1")
    await pool.want(TOPIC, {2: new.lease, 3: new.lease})
    assert (await pool.assignments.claim(new.lease, new.token, TOPIC, [2])).refused == {2: "OWNED"}
    renewal = await pool.leases.renew(old.lease, old.token, TTL_MS)
    assert isinstance(renewal, Renewal)
    assert renewal.wanted == ((TOPIC, 0), (TOPIC, 1))
    assert renewal.lost == ((TOPIC, 2), (TOPIC, 3))
    assert await pool.assignments.release(old.lease, old.token, TOPIC, [2, 3, 9]) == (2, 3)
    assert await pool.assignments.release(old.lease, old.token, TOPIC, [2]) == ()
    assert (await pool.assignments.claim(old.lease, old.token, TOPIC, [2])).refused == {2: "NOT_WANTED"}
    assert (await pool.assignments.claim(new.lease, new.token, TOPIC, [2, 3])).granted == (2, 3)
    renewal = await pool.leases.renew(old.lease, old.token, TTL_MS)
    assert isinstance(renewal, Renewal)
    assert (renewal.wanted, renewal.lost) == (((TOPIC, 0), (TOPIC, 1)), ())


async def test_nothing_is_wanted_of_a_lease_that_is_not_active(pool: Pool) -> None:
    await pool.node("n1")
    reserved, active = await pool.reserved("n1"), await pool.active("n1")
    want = pool.assignments.want
    assert code(await want(pool.term, TOPIC, {0: active.lease, 1: reserved.lease})) == "UNAVAIL"
    assert code(await want(pool.term, TOPIC, {0: "never-was"})) == "UNAVAIL"
    assert code(await want(pool.term - 1, TOPIC, {0: active.lease})) == "TERM"
    await pool.let_expire(active.lease)
    assert code(await want(pool.term, TOPIC, {0: active.lease})) == "UNAVAIL"
    assert (await pool.leases.state()).topics == {}


async def test_a_claim_needs_an_active_lease_with_the_current_token(pool: Pool) -> None:
    await pool.node("n1")
    reserved = await pool.reserved("n1")
    claim = pool.assignments.claim
    assert (await claim(reserved.lease, reserved.token, TOPIC, [0, 1])).refused == {0: "NO", 1: "NO"}
    grant = await pool.active("n1")
    await pool.want(TOPIC, {0: grant.lease})
    assert (await claim(grant.lease, grant.token - 1, TOPIC, [0])).refused == {0: "FENCED"}
    await pool.let_expire(grant.lease)
    assert (await claim(grant.lease, grant.token, TOPIC, [0])).refused == {0: "EXPIRED"}
    await pool.leases.reap()
    assert (await claim(grant.lease, grant.token, TOPIC, [0])).refused == {0: "GONE"}
    drained = await pool.active("n1")
    await pool.leases.drain(pool.term, drained.lease)
    assert (await claim(drained.lease, drained.token, TOPIC, [0])).refused == {0: "DRAINING"}


async def test_a_release_needs_the_token_under_which_it_was_claimed(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.owner("n1", TOPIC, [0])
    assert await pool.assignments.release(grant.lease, grant.token - 1, TOPIC, [0]) == ()
    assert (await pool.leases.state()).topics[TOPIC].own == {0: (grant.lease, grant.token)}


async def test_an_ended_lease_loses_its_partitions_in_the_same_moment(pool: Pool) -> None:
    await pool.node("n1")
    expired, released = await pool.owner("n1", TOPIC, [0, 1]), await pool.owner("n1", "t2", [5])
    heir = await pool.active("n1")
    await pool.want(TOPIC, {1: heir.lease})
    await pool.let_expire(expired.lease)
    start = (await pool.leases.state()).event_id
    await pool.leases.reap()
    await pool.leases.release(released.lease, released.token)
    state = await pool.leases.state()
    assert (state.topics[TOPIC].own, state.topics[TOPIC].want) == ({}, {1: heir.lease})
    assert set(state.topics[TOPIC].unsettled_since) == {0, 1}
    assert (state.topics["t2"].own, state.topics["t2"].want) == ({}, {})
    _, events = await pool.leases.events(start, 0)
    freed = [(event.topic, sorted(event.partitions)) for event in events if event.kind == "release"]
    assert freed == [(TOPIC, [0, 1]), ("t2", [5])]
    assert (await pool.assignments.claim(heir.lease, heir.token, TOPIC, [1])).granted == (1,)


async def test_a_draining_lease_keeps_its_partitions_until_it_releases_them(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.owner("n1", TOPIC, [0, 1])
    await pool.leases.drain(pool.term, grant.lease)
    renewal = await pool.leases.renew(grant.lease, grant.token, TTL_MS)
    assert isinstance(renewal, Renewal)
    assert (renewal.wanted, renewal.lost) == ((), ((TOPIC, 0), (TOPIC, 1)))
    topic = (await pool.leases.state()).topics[TOPIC]
    assert topic.owned_by(grant.lease) == (0, 1)
    assert set(topic.unsettled_since) == {0, 1}
    assert await pool.assignments.release(grant.lease, grant.token, TOPIC, [0, 1]) == (0, 1)


async def test_an_owner_that_does_not_let_go_is_evicted_after_the_limit_and_not_before(pool: Pool) -> None:
    await pool.node("n1")
    old, new = await pool.owner("n1", TOPIC, [0, 1]), await pool.active("n1")
    evict = pool.assignments.evict
    assert code(await evict(pool.term, TOPIC, 0, 0)) == "NO"
    await pool.want(TOPIC, {0: new.lease})
    assert code(await evict(pool.term, TOPIC, 0, TTL_MS)) == "NO"
    assert code(await evict(pool.term - 1, TOPIC, 0, 0)) == "TERM"
    topic = (await pool.leases.state()).topics[TOPIC]
    await pool.redis.command("HINCRBY", f"{pool.root}:part:{TOPIC}:since", 0, -TTL_MS - 1)
    assert topic.overdue(topic.unsettled_since[0] + TTL_MS + 1, TTL_MS) == (0,)
    assert await evict(pool.term, TOPIC, 0, TTL_MS) is None
    assert code(await evict(pool.term, TOPIC, 0, 0)) == "NO"
    assert (await pool.assignments.claim(new.lease, new.token, TOPIC, [0])).granted == (0,)
    renewal = await pool.leases.renew(old.lease, old.token, TTL_MS)
    assert isinstance(renewal, Renewal)
    assert (renewal.wanted, renewal.lost) == (((TOPIC, 1),), ())


async def test_changing_the_want_again_does_not_give_the_owner_more_time(pool: Pool) -> None:
    await pool.node("n1")
    await pool.owner("n1", TOPIC, [0])
    first, second = await pool.active("n1"), await pool.active("n1")
    await pool.want(TOPIC, {0: first.lease})
    since = (await pool.leases.state()).topics[TOPIC].unsettled_since
    await pool.redis.server_unix_ms()
    await pool.want(TOPIC, {0: second.lease})
    assert (await pool.leases.state()).topics[TOPIC].unsettled_since == since


async def test_wanting_the_same_again_is_no_change(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.owner("n1", TOPIC, [0])
    start = await pool.leases.state()
    await pool.want(TOPIC, {0: grant.lease})
    after = await pool.leases.state()
    assert (after.topics, after.event_id) == (start.topics, start.event_id)


async def test_a_topic_that_nobody_wants_or_owns_leaves_nothing(pool: Pool) -> None:
    await pool.node("n1")
    grant = await pool.owner("n1", TOPIC, [0, 1])
    gone = await pool.owner("n1", "t2", [0])
    await pool.want(TOPIC, {0: None, 1: None})
    assert await pool.assignments.release(grant.lease, grant.token, TOPIC, [0, 1]) == (0, 1)
    await pool.leases.release(gone.lease, gone.token)
    assert set((await pool.leases.state()).topics) == {"t2"}
    await pool.want("t2", {0: None})
    assert (await pool.leases.state()).topics == {}
    assert await pool.redis.command("KEYS", f"{pool.root}:part:*") == []


async def test_of_many_that_claim_at_once_only_the_wanted_one_gets_it(pool: Pool) -> None:
    await pool.node("n1", cores=4)
    grants = [await pool.active("n1") for _ in range(6)]
    await pool.want(TOPIC, {0: grants[3].lease})
    claims = await asyncio.gather(
        *(pool.assignments.claim(grant.lease, grant.token, TOPIC, [0]) for grant in grants * 3)
    )
    assert [bool(claim.granted) for claim in claims] == [n % 6 == 3 for n in range(18)]


async def test_every_operation_moves_a_lease_only_along_the_edges_of_the_table(pool: Pool) -> None:
    await pool.node("n1", cores=16)

    async def apply(operation: str, lease: str, token: int) -> None:
        leases = pool.leases
        match operation:
            case "bind":
                await leases.bind(lease, token, TTL_MS)
            case "renew":
                await leases.renew(lease, token, TTL_MS)
            case "drain":
                await leases.drain(pool.term, lease)
            case "release":
                await leases.release(lease, token)
            case _:
                await leases.confirm(lease, token)

    seen = set()
    for path in ([], ["bind"], ["bind", "drain"], ["bind", "release"]):
        for operation in ("bind", "renew", "drain", "release", "confirm"):
            grant = await pool.reserved("n1")
            for step in path:
                await apply(step, grant.lease, grant.token)
            before = (await pool.leases.state()).leases[grant.lease].state
            await apply(operation, grant.lease, grant.token)
            lease = (await pool.leases.state()).leases.get(grant.lease)
            after = "deleted" if lease is None else lease.state
            assert before == after or LEASE.allows(before, after), (before, operation, after)
            seen.add((before, after))
    assert {(a, b) for a, ends in LEASE.edges.items() for b in ends} <= seen
