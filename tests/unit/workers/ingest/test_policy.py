"""When batches are cut: decisions over values, with a clock in the test's hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.serving_specs import BatchingSpec, PaddingSpec
from workers.ingest.buckets import Buckets, bucket_sizes
from workers.ingest.policy import DEPTH, Cut, Engine, Hold, Policy, Wait, Waiting
from workers.ingest.reserve import Reserve

IDLE = Engine(0, 0.0)
FIXED, PER_ROW = 0.008, 0.0001


def policy(knobs: BatchingSpec | None = None, *, rate: float = 0.0, known: bool = True, now: float = 5.0) -> Policy:
    """A policy at `now` that has seen `rate` rows/s arrive and, if `known`, ten batches of every bucket."""
    made = Policy(knobs or BatchingSpec(max_batch_size=64))
    if known:
        for size in made.buckets.sizes * 10:
            made.finished(now, size, FIXED + PER_ROW * size)
    for step in range(200 if rate else 0):
        made.arrived(now - 2 + step / 100, max(1, round(rate / 100)))
    return made


def test_an_idle_engine_is_never_kept_waiting_without_a_delay() -> None:
    for rate in (0, 100, 10_000):
        decision = policy(rate=rate).decide(5.0, Waiting(1, 5.0, 35.0), IDLE)
        assert isinstance(decision, Cut)
        assert (decision.rows, decision.reason) == (1, "engine_free")


def test_with_one_running_and_one_ready_the_queue_grows() -> None:
    assert policy().decide(5.0, Waiting(80, 1.0, 35.0), Engine(DEPTH, 0.01)) == Hold()


def test_nothing_waiting_is_nothing_to_decide() -> None:
    assert policy().decide(5.0, Waiting(0, math.inf, math.inf), IDLE) == Hold()


def test_a_full_batch_is_ready_before_the_engine_is() -> None:
    decision = policy(rate=4000).decide(5.0, Waiting(70, 4.99, 35.0), Engine(1, 0.01))
    assert isinstance(decision, Cut)
    assert (decision.rows, decision.reason) == (64, "full")


def test_the_ready_batch_stays_open_until_shortly_before_the_engine_frees() -> None:
    decision = policy(rate=2000).decide(5.0, Waiting(10, 4.999, 35.0), Engine(1, 0.008))
    assert isinstance(decision, Wait)
    assert decision.until == 5.007


def test_who_cannot_outlast_the_running_batch_need_not_wait_for_its_end() -> None:
    decision = policy(rate=2000).decide(5.0, Waiting(10, 4.999, 5.01), Engine(1, 0.008))
    assert isinstance(decision, Wait)
    assert decision.hopeless > 5.01


def test_while_a_batch_is_open_only_those_are_refused_whom_no_batch_could_save() -> None:
    decision = policy(rate=2000).decide(5.0, Waiting(60, 4.98, 5.0), Engine(1, 0.008))
    assert isinstance(decision, Wait)
    assert decision.hopeless == pytest.approx(5.008 + Reserve.FIRST + FIXED + PER_ROW)


def test_the_ready_batch_is_closed_when_nobody_else_is_expected() -> None:
    decision = policy(rate=0).decide(5.0, Waiting(10, 4.999, 35.0), Engine(1, 0.008))
    assert isinstance(decision, Cut)
    assert (decision.rows, decision.reason) == (10, "engine_free")


def test_a_delay_is_used_when_the_engine_would_fall_behind_and_another_arrival_is_expected() -> None:
    patient = BatchingSpec(max_batch_size=64, max_batch_delay_ms=5)
    assert policy(patient, rate=2000).decide(5.0, Waiting(3, 5.0, 35.0), IDLE) == Wait(5.005)
    late = policy(patient, rate=2000).decide(5.0051, Waiting(3, 5.0, 35.0), IDLE)
    assert isinstance(late, Cut)
    assert late.reason == "delay"


def test_a_delay_is_not_used_when_the_engine_keeps_up_anyway() -> None:
    patient = BatchingSpec(max_batch_size=64, max_batch_delay_ms=50)
    decision = policy(patient, rate=100).decide(5.0, Waiting(3, 5.0, 35.0), IDLE)
    assert isinstance(decision, Cut)
    assert decision.reason == "engine_free"


def test_a_delay_ends_where_the_most_urgent_request_would_suffer() -> None:
    patient = BatchingSpec(max_batch_size=64, max_batch_delay_ms=50)
    decision = policy(patient, rate=4000).decide(5.0, Waiting(3, 5.0, 5.020), IDLE)
    assert isinstance(decision, Wait)
    assert decision.until < 5.020 - FIXED
    late = policy(patient, rate=4000).decide(decision.until, Waiting(3, 5.0, 5.020), IDLE)
    assert isinstance(late, Cut)
    assert late.reason == "deadline"


def test_nothing_but_the_delay_itself_allows_a_delay() -> None:
    assert BatchingSpec(slo_ms=1000).delay_seconds == 0.0
    assert BatchingSpec(slo_ms=1000, max_batch_delay_ms=7).delay_seconds == pytest.approx(0.007)


def test_the_batch_shrinks_to_save_its_most_urgent_request_while_the_engine_keeps_up() -> None:
    # 60 rows take 14.4 ms, 8 rows 8.8 ms; at 50 rows/s the smallest batch would keep up.
    decision = policy(rate=50).decide(5.0, Waiting(60, 4.99, 5.0115), IDLE)
    assert isinstance(decision, Cut)
    assert decision.reason == "deadline"
    assert FIXED + PER_ROW * decision.rows + 0.002 <= 0.0115
    assert decision.hopeless(decision.rows) <= 5.0115


def test_the_batch_does_not_shrink_where_the_engine_would_hardly_keep_up() -> None:
    # 8 rows in 8.8 ms are 909 rows/s.
    for rate, shrinks in ((500, True), (800, False)):
        decision = policy(rate=rate).decide(5.0, Waiting(60, 4.99, 5.0115), IDLE)
        assert isinstance(decision, Cut)
        assert (decision.rows < 60) == shrinks


def test_under_overload_the_batch_keeps_its_size_and_drops_who_cannot_make_it() -> None:
    decision = policy(rate=8000).decide(5.0, Waiting(400, 4.95, 5.005), IDLE)
    assert isinstance(decision, Cut)
    assert decision.rows >= 48
    assert decision.hopeless(decision.rows) > 5.010


def test_nothing_is_refused_by_prediction_before_five_batches_or_on_old_figures() -> None:
    young = policy(known=False)
    for _ in range(4):
        young.finished(5.0, 1, 1.0)
    assert young.decide(5.0, Waiting(1, 5.0, 5.5), IDLE) == Cut(1, "engine_free", 5.0)
    young.finished(5.0, 1, 1.0)
    hopeless = young.decide(5.0, Waiting(1, 5.0, 5.5), IDLE)
    assert isinstance(hopeless, Cut)
    assert hopeless.hopeless(1) > 5.5
    # Refusing everything for ever on one bad estimate would be worse than computing a batch in vain.
    assert young.decide(5.2, Waiting(1, 5.2, 5.7), IDLE) == Cut(1, "engine_free", 5.2)


def test_a_padded_model_is_cut_at_a_bucket_when_filling_up_would_compute_less() -> None:
    steep = Policy(BatchingSpec(max_batch_size=64, padding=PaddingSpec(batch=True)))
    for size in steep.buckets.sizes * 10:
        steep.finished(5.0, size, size / 1000)
    decision = steep.decide(5.0, Waiting(17, 5.0, 35.0), IDLE)
    assert isinstance(decision, Cut)
    assert (decision.rows, decision.reason) == (16, "bucket")


def test_sizes_beyond_the_largest_batch_are_refused() -> None:
    with pytest.raises(ValidationError, match="preferred_batch_sizes go beyond"):
        BatchingSpec(max_batch_size=8, preferred_batch_sizes=(4, 16))


def test_new_knobs_keep_what_was_learned_unless_the_buckets_change() -> None:
    changed = policy()
    table = changed.table
    changed.configure(BatchingSpec(max_batch_size=64, max_batch_delay_ms=7))
    assert changed.table is table
    changed.configure(BatchingSpec(max_batch_size=32))
    assert changed.table is not table
    assert changed.buckets.top == 32


loads = st.builds(
    Waiting,
    rows=st.integers(0, 500),
    oldest=st.floats(4.0, 5.0),
    deadline=st.floats(5.0, 40.0, exclude_min=True),
)
engines = st.builds(
    Engine,
    in_hand=st.integers(0, 3),
    wait=st.floats(-0.05, 0.05),
    way_back=st.floats(0, 0.1),
    handover=st.floats(0, 0.005),
    lead=st.sampled_from((-1.0, -0.001, 0.0, 0.0005, 0.005)),
)
knobs = st.builds(
    BatchingSpec,
    max_batch_size=st.integers(8, 200),
    preferred_batch_sizes=st.lists(st.integers(1, 8), max_size=3).map(tuple),
    slo_ms=st.none() | st.floats(1, 500),
    max_batch_delay_ms=st.none() | st.floats(0, 100),
    padding=st.builds(PaddingSpec, batch=st.booleans()),
)
histories = st.lists(st.tuples(st.integers(1, 200), st.floats(0.0001, 0.1)), max_size=40)


@given(loads, engines, knobs, histories, st.integers(0, 20_000))
def test_no_decision_exceeds_the_cap_or_keeps_a_free_engine_without_cause(
    waiting: Waiting, engine: Engine, spec: BatchingSpec, history: list[tuple[int, float]], rate: int
) -> None:
    made = policy(spec, rate=rate, known=False)
    for rows, seconds in history:
        made.finished(5.0, rows, seconds)
    decision = made.decide(5.0, waiting, engine)
    if not waiting.rows or engine.in_hand >= DEPTH:
        assert decision == Hold()
    elif isinstance(decision, Cut):
        assert 1 <= decision.rows <= min(waiting.rows, spec.max_batch_size, made.buckets.top)
        assert (
            decision.hopeless(decision.rows) >= 5.0
        )  # take() refuses what is due before: no row is launched after its deadline
        assert decision.reason in {"full", "engine_free", "deadline", "delay", "bucket"}
    else:
        assert isinstance(decision, Wait)
        assert decision.until > 5.0
        # Somebody is expected by then, and a free engine waits no longer than its operator allowed.
        assert made.rate.at(5.0) * (decision.until - 5.0) >= (0.1 if engine.in_hand else 1)
        if not engine.in_hand:
            assert decision.until <= waiting.oldest + spec.delay_seconds
            assert decision.until < waiting.deadline
        else:
            closes = 5.0 + engine.wait - engine.lead
            is_tight = waiting.deadline - waiting.oldest < 2 * made.table.mean(min(waiting.rows, made.largest))
            assert decision.until == pytest.approx(closes) or (is_tight and decision.until == pytest.approx(closes + 1))


@given(st.integers(1, 5000))
def test_buckets_hold_every_batch_and_waste_a_third_at_most(most: int) -> None:
    sizes = bucket_sizes(most)
    assert sizes[-1] == most
    assert list(sizes) == sorted(set(sizes))
    buckets = Buckets(sizes)
    for rows in range(1, min(most, 300) + 1):
        assert buckets.up(rows) >= rows
        assert buckets.down(rows) <= rows
        assert buckets.below(rows) < rows or rows == 1
        if rows > 16:
            assert buckets.up(rows) - rows <= buckets.up(rows) / 3


def test_the_usual_buckets() -> None:
    assert bucket_sizes(128) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
    assert bucket_sizes(20) == (1, 2, 4, 8, 16, 20)
    assert bucket_sizes(64, (8, 32)) == (8, 32)


def test_a_request_must_be_as_much_earlier_as_its_answer_travels() -> None:
    near = policy(rate=2000).decide(5.0, Waiting(64, 4.9, 35.0), IDLE)
    far = policy(rate=2000).decide(5.0, Waiting(64, 4.9, 35.0), Engine(0, 0.0, 0.02))
    assert isinstance(near, Cut)
    assert isinstance(far, Cut)
    assert far.hopeless(64) - near.hopeless(64) == pytest.approx(0.02)


def test_a_batch_for_an_idle_engine_is_as_much_later_as_its_handover_takes() -> None:
    for engine, begins in ((Engine(0, 0.0, handover=0.003), 0.003), (Engine(1, 0.001, handover=0.003), 0.003)):
        decision = policy().decide(5.0, Waiting(64, 4.9, 35.0), engine)
        assert isinstance(decision, Cut)
        assert decision.ready == pytest.approx(5.0 + begins + Reserve.FIRST)


def test_where_nobody_can_wait_out_a_batch_the_next_one_is_closed_when_the_engine_is_free() -> None:
    decision = policy(rate=2000).decide(5.0, Waiting(10, 4.999, 5.014), Engine(1, 0.001))
    assert isinstance(decision, Wait)
    assert decision.until > 5.5


def test_late_answers_have_requests_refused_earlier_and_punctual_ones_later() -> None:
    made = policy(rate=2000)

    def hopeless() -> float:
        decision = made.decide(5.0, Waiting(64, 4.99, 5.09), IDLE)
        assert isinstance(decision, Cut)
        return decision.hopeless(64)

    before = hopeless()
    made.answered(5.0, 64, 64)
    assert hopeless() == pytest.approx(before + 0.995 * Reserve.STEP * (FIXED + PER_ROW * 64))
    for _ in range(1000):
        made.answered(5.0, 64, 0)
    assert hopeless() == pytest.approx(before - Reserve.FIRST)


def test_a_batch_that_found_no_memory_is_halved_for_good_and_only_smaller_ones_lower_it_again() -> None:
    policy = Policy(BatchingSpec(max_batch_size=64))
    assert policy.largest == 64
    assert policy.out_of_memory(48)
    assert policy.largest == 24
    assert not policy.out_of_memory(64)
    policy.configure(BatchingSpec(max_batch_size=32))
    assert policy.largest == 24
    assert policy.out_of_memory(2)
    assert policy.largest == 1


def test_what_was_measured_before_the_first_request_sizes_batches_and_outlives_new_knobs() -> None:
    policy = Policy(BatchingSpec(max_batch_size=64))
    policy.seed({rows: [0.008 + rows * 1e-5] * 5 for rows in (1, 8, 32, 64)})
    assert policy.table.mean(64) == pytest.approx(0.00864)
    assert policy._knee == 64
    policy.configure(BatchingSpec(max_batch_size=32))
    assert policy.table.mean(32) == pytest.approx(0.00832)
    assert policy._knee == 32
