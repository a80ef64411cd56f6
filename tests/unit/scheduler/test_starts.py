from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contracts.pool import Event
from scheduler.snapshot import Backoff
from scheduler.starts import LONGEST_WAIT_MS, Starts
from tests.unit.scheduler.fleet_model import NOW

DIGITS = "digits@2"


class Story:
    """Events as the pool would write them, at chosen moments."""

    def __init__(self) -> None:
        self.starts = Starts()
        self.now = NOW

    def tell(self, kind: str, lease: str = "", detail: str = "", *, after_ms: int = 10) -> None:
        self.now += after_ms
        self.starts.see(Event(id=f"{self.now}-0", kind=kind, lease=lease, detail=detail))

    def fail(self, lease: str, *, after_ms: int = 10) -> None:
        self.tell("commit", lease, DIGITS, after_ms=after_ms)
        self.tell("end", lease, "no such file")

    @property
    def backoff(self) -> Backoff | None:
        return self.starts.backoff.get(DIGITS)

    @property
    def wait_ms(self) -> int:
        assert self.backoff is not None
        return self.backoff.retry_unix_ms - self.now


def test_waits_double_from_one_second_to_thirty() -> None:
    story = Story()
    waits = []
    for number in range(8):
        story.fail(f"l{number}", after_ms=60_000)
        waits.append(story.wait_ms)
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]
    assert story.backoff is not None
    assert (story.backoff.failures, story.backoff.reason) == (8, "no such file")


def test_workers_that_were_started_together_fail_together() -> None:
    story = Story()
    for lease in ("a", "b", "c"):
        story.tell("commit", lease, DIGITS)
    for lease in ("a", "b", "c"):
        story.tell("end", lease, "no such file")
    assert story.backoff is not None
    assert story.backoff.failures == 1


def test_workers_of_one_plan_are_one_failure_even_when_the_first_fails_before_the_last_is_granted() -> None:
    story = Story()
    for lease in ("a", "b", "c"):
        story.fail(lease)
    assert story.backoff is not None
    assert (story.backoff.failures, story.backoff.retry_unix_ms) == (1, NOW + 1_020)


def test_a_worker_that_comes_up_ends_the_waiting() -> None:
    story = Story()
    story.fail("a")
    story.tell("commit", "b", DIGITS)
    story.tell("bind", "b")
    assert story.backoff is None
    story.tell("end", "b", "expired")
    assert story.backoff is None, "it did start"


def test_a_change_of_the_registry_may_be_the_repair() -> None:
    story = Story()
    story.fail("a")
    story.tell("registry")
    assert story.backoff is None


def test_ends_that_are_nobodys_fault_do_not_count() -> None:
    for reason in ("drained", "node dead", "device lost"):
        story = Story()
        story.tell("commit", "a", DIGITS)
        story.tell("end", "a", reason)
        assert story.backoff is None


def test_an_end_whose_beginning_was_not_seen_is_not_judged() -> None:
    story = Story()
    story.tell("end", "a", "expired")
    assert story.starts.backoff == {}


def test_a_refused_grant_counts_as_a_failed_start() -> None:
    story = Story()
    story.starts.refused(DIGITS, "QUOTA: someone", story.now)
    assert story.backoff == Backoff(1, NOW + 1_000, "QUOTA: someone")


@given(st.lists(st.tuples(st.sampled_from(["commit", "bind", "end"]), st.sampled_from("abc"), st.integers(0, 40_000))))
def test_no_wait_is_longer_than_the_longest(events: list[tuple[str, str, int]]) -> None:
    story = Story()
    for kind, lease, after_ms in events:
        story.tell(kind, lease, DIGITS if kind == "commit" else "", after_ms=after_ms)
        assert story.backoff is None or story.wait_ms <= LONGEST_WAIT_MS
