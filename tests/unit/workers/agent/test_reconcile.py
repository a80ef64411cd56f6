"""What the agent decides, in every combination of what the pool says and what runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.pool import Lease, LeaseState, Share
from workers.agent.reconcile import (
    Action,
    CleanUp,
    Confirm,
    KillWorker,
    Limits,
    Release,
    StartEngine,
    StartWorker,
    StopWorker,
    WorkerView,
    next_due,
    reconcile,
    respawn_delay,
)

NOW = 1_000.0
LIMITS = Limits(ttl=15, suspect=3, quarantine_grace=2, engine_grace=0.5, drain=25)
STATES: tuple[LeaseState | None, ...] = (None, "reserved", "active", "draining", "quarantine")


def lease(state: LeaseState = "active", *, token: int = 7, name: str = "a") -> Lease:
    return Lease(
        id=name,
        token=token,
        deployment="digits@2",
        models=("digits@2",),
        tenant="",
        node="n1",
        mode="cpu",
        shares=(Share("CPU-n1-0", 100, 25),),
        state=state,
        expires_unix_ms=0,
        created_unix_ms=0,
    )


RUNNING = WorkerView("a", 7, ingest_alive=True, engine_alive=True)
ENGINE_DEAD = replace(RUNNING, engine_alive=False)
INGEST_DEAD = replace(RUNNING, ingest_alive=False, ended="exited with status 1")
GONE = replace(INGEST_DEAD, engine_alive=False)


def decide(
    held: Lease | None,
    view: WorkerView | None,
    *,
    seen: float = NOW,
    is_stopping: bool = False,
) -> list[Action]:
    leases = {} if held is None else {held.id: held}
    views = {} if view is None else {view.lease: view}
    return reconcile(leases, views, NOW, seen=seen, limits=LIMITS, is_stopping=is_stopping)


@pytest.mark.parametrize(
    ("held", "view", "expected"),
    [
        (lease("reserved"), None, [StartWorker(lease("reserved"))]),
        (lease("active"), None, [Release("a", 7, "its processes are gone"), Confirm("a", 7)]),
        (lease("draining"), None, [Release("a", 7, "its processes are gone"), Confirm("a", 7)]),
        (lease("quarantine"), None, [Confirm("a", 7)]),
        (lease("reserved"), RUNNING, []),
        (lease("active"), RUNNING, []),
        (lease("draining"), RUNNING, []),
        (lease("active"), ENGINE_DEAD, [StartEngine("a")]),
        (lease("draining"), ENGINE_DEAD, [StartEngine("a")]),
        (lease("reserved"), ENGINE_DEAD, [StartEngine("a")]),
        (lease("active"), replace(ENGINE_DEAD, engine_due=NOW + 1), []),
        (lease("active"), replace(ENGINE_DEAD, has_engine=False), []),
        (
            lease("active"),
            INGEST_DEAD,
            [Release("a", 7, "ingest exited with status 1"), StopWorker("a", 0.5, with_signal=True)],
        ),
        (lease("active"), replace(INGEST_DEAD, is_released=True, kill_at=NOW + 0.4), []),
        (lease("active"), replace(INGEST_DEAD, is_released=True, kill_at=NOW - 0.1), [KillWorker("a")]),
        (lease("active"), GONE, [Release("a", 7, "ingest exited with status 1")]),
        (lease("reserved"), GONE, [Release("a", 7, "ingest exited with status 1")]),
        (lease("active"), replace(GONE, is_released=True), [CleanUp("a"), Confirm("a", 7)]),
        (lease("quarantine"), RUNNING, [StopWorker("a", 2, with_signal=False)]),
        (lease("quarantine"), replace(RUNNING, kill_at=NOW + 1), []),
        (lease("quarantine"), replace(RUNNING, kill_at=NOW), [KillWorker("a")]),
        (lease("quarantine"), INGEST_DEAD, [StopWorker("a", 0.5, with_signal=True)]),
        (lease("quarantine"), GONE, [CleanUp("a"), Confirm("a", 7)]),
        (None, RUNNING, [StopWorker("a", 2, with_signal=False)]),
        (None, GONE, [CleanUp("a")]),
        (lease("active", token=8), RUNNING, [StopWorker("a", 0.0, with_signal=False)]),
        (lease("reserved", token=8), GONE, [CleanUp("a")]),
    ],
)
def test_each_state_and_condition_has_its_answer(
    held: Lease | None, view: WorkerView | None, expected: list[Action]
) -> None:
    assert decide(held, view) == expected


def test_a_stop_drains_what_runs_and_gives_back_what_was_not_begun() -> None:
    assert decide(lease("active"), RUNNING, is_stopping=True) == [StopWorker("a", 25, with_signal=True)]
    assert decide(lease("active"), replace(RUNNING, kill_at=NOW + 20), is_stopping=True) == []
    assert decide(lease("active"), replace(RUNNING, kill_at=NOW), is_stopping=True) == [KillWorker("a")]
    reason = "its node's agent is stopping"
    assert decide(lease("reserved"), None, is_stopping=True) == [Release("a", 7, reason), Confirm("a", 7)]


def test_nothing_is_started_on_old_news() -> None:
    assert decide(lease("reserved"), None, seen=NOW - 3) == []
    assert decide(lease("active"), ENGINE_DEAD, seen=NOW - 3) == [StartEngine("a")]


def test_a_pool_that_was_away_for_one_ttl_ends_everything_that_runs() -> None:
    views = {name: replace(RUNNING, lease=name) for name in "abc"} | {"d": replace(GONE, lease="d")}
    killed: list[Action] = [KillWorker("a"), KillWorker("b"), KillWorker("c")]
    for leases in (None, {"a": lease("active"), "e": lease("reserved", name="e")}):
        assert reconcile(leases, views, NOW, seen=NOW - 15, limits=LIMITS) == killed


def test_before_the_pool_has_spoken_nothing_is_judged() -> None:
    assert reconcile(None, {"a": RUNNING, "b": replace(GONE, lease="b")}, NOW, seen=NOW, limits=LIMITS) == []


def every_condition() -> Iterator[tuple[Lease | None, WorkerView | None, bool]]:
    kill_ats = (None, NOW - 1, NOW + 0.2, NOW + 100)
    flags = (False, True)
    for state, is_stopping in itertools.product(STATES, flags):
        held = None if state is None else lease(state)
        yield held, None, is_stopping
        for token, ingest, engine, has_engine, kill_at, released in itertools.product(
            (6, 7), flags, flags, flags, kill_ats, flags
        ):
            if engine and not has_engine:
                continue
            view = WorkerView("a", token, ingest, engine, has_engine, 0.0, kill_at, released)
            yield held, view, is_stopping


def test_no_combination_breaks_a_promise() -> None:
    for held, view, is_stopping in every_condition():
        actions = decide(held, view, is_stopping=is_stopping)
        context = (held and held.state, view, is_stopping, actions)
        runs = view is not None and not view.is_gone
        for action in actions:
            if isinstance(action, Confirm | CleanUp):
                assert not runs, context
            if isinstance(action, StartWorker):
                assert view is None, context
                assert held is not None, context
                assert held.state == "reserved", context
            if isinstance(action, StartEngine):
                assert view is not None, context
                assert view.ingest_alive, context
                assert held is not None, context
                assert held.is_live, context
                assert held.token == view.token, context
            if isinstance(action, Release):
                assert view is None or not view.ingest_alive, context


class World:
    """A pool with one lease and a machine, which carry out what is decided; processes obey after a while."""

    def __init__(self, held: Lease | None, view: WorkerView | None) -> None:
        self.held, self.view, self.now = held, view, NOW

    def step(self, *, is_stopping: bool) -> None:
        leases = {} if self.held is None else {"a": self.held}
        views = {} if self.view is None else {"a": self.view}
        for action in reconcile(leases, views, self.now, seen=self.now, limits=LIMITS, is_stopping=is_stopping):
            self.apply(action)
        self.now += 0.3

    def apply(self, action: Action) -> None:  # noqa: C901 - one case per action
        match action:
            case StartWorker(held):
                self.view = WorkerView("a", held.token, ingest_alive=True, engine_alive=True)
            case StartEngine():
                assert self.view is not None
                self.view = replace(self.view, engine_alive=True)
            case StopWorker(_, grace, _):
                assert self.view is not None
                self.view = replace(self.view, kill_at=self.now + grace)
            case KillWorker():
                assert self.view is not None
                self.view = replace(self.view, ingest_alive=False, engine_alive=False)
            case Release():
                if self.held is not None and self.held.is_live:
                    self.held = lease("quarantine")
                if self.view is not None:
                    self.view = replace(self.view, is_released=True)
            case CleanUp():
                self.view = None
            case Confirm(_, token):
                assert self.view is None
                assert self.held is None or self.held.state == "quarantine"
                if self.held is not None and self.held.token == token:
                    self.held = None


def test_every_combination_settles() -> None:
    for held, view, is_stopping in every_condition():
        if view is not None and view.is_released and held is not None and held.is_live:
            continue  # the pool has accepted the release
        world = World(held, view)
        for _ in range(120):
            world.step(is_stopping=is_stopping)
        if world.view is not None:  # then it runs under its lease
            assert not is_stopping
            assert world.held is not None
            assert world.held.is_live
            assert (world.view.ingest_alive, world.view.engine_alive) == (True, world.view.has_engine)
        else:
            assert world.held is None


def test_time_matters_again_at_the_next_kill_or_start() -> None:
    views = {
        "a": replace(RUNNING, kill_at=NOW + 5),
        "b": replace(ENGINE_DEAD, lease="b", engine_due=NOW + 2),
        "c": replace(RUNNING, lease="c", engine_due=NOW + 1),
        "d": replace(RUNNING, lease="d", kill_at=NOW - 1),
    }
    assert next_due(views, NOW) == NOW + 2
    assert next_due({"a": RUNNING}, NOW) is None


@given(st.lists(st.floats(0, 59.9), min_size=1, max_size=30))
def test_the_first_death_is_answered_at_once_and_later_ones_ever_more_slowly(ages: list[float]) -> None:
    deaths = sorted(NOW - age for age in ages)
    delay = respawn_delay(deaths, NOW)
    assert (delay == 0.0) == (len(ages) == 1)
    assert delay <= 10.0
    assert respawn_delay([*deaths, NOW], NOW) >= delay


def test_respawns_back_off_from_half_a_second_to_ten() -> None:
    assert [respawn_delay([NOW] * count, NOW) for count in range(1, 9)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert respawn_delay([NOW - 61, NOW - 60, NOW], NOW) == 0.0


def test_an_engine_that_had_served_is_started_again_soon_however_often_it_dies() -> None:
    deaths = [float(second) for second in range(10)]
    assert respawn_delay(deaths[:1], 0.0, has_served=True) == 0.0
    assert respawn_delay(deaths, 9.0, has_served=True) == 0.5
    assert respawn_delay(deaths, 9.0) == 10.0
