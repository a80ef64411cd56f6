"""The figures of the demo are those of the replies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.messages import Receipt, Response, Status
from contracts.tensors import Tensor
from deploy.demo.images import Digits
from deploy.demo.job import Outcome, Recovery
from deploy.demo.report import Answer, RunReport, histogram, report_run
from deploy.demo.verdict import verdict

DIGITS = Digits(np.zeros((4, 64), np.float32), np.array([0, 1, 2, 3], np.uint8), np.array([True, True, False, True]))


def answer(
    version: int, image: int, *, says: int, status: Status = Status.OK, rows: int = 2, total: int = 1000
) -> Answer:
    scores = np.zeros((1, 10), np.float32)
    scores[0, says] = 1.0
    receipt = Receipt(worker="w", device="cpu", batch_rows=rows, computed_us=200, total_us=total)
    outputs = (Tensor.from_numpy("scores", scores),) if status is Status.OK else ()
    return Answer(version, image, Response(f"{version}-{image}", status, "digits", version, outputs, receipt=receipt))


def run(*answers: Answer, asked: int = 4) -> RunReport:
    by_id: dict[str, list[Answer]] = {}
    for found in answers:
        by_id.setdefault(found.response.id, []).append(found)
    return report_run(by_id, DIGITS, {1: asked, 2: asked}, 2.0, 0)


def outcome(first: RunReport, second: RunReport, left: int = 0) -> Outcome:
    recovery = Recovery(
        worker="w", pids=(1, 2), partitions=8, in_flight=9, taken_over_seconds=0.1, longest_wait_ms=1.0,
        replaced_seconds=2.0,
    )  # fmt: skip
    return Outcome(kafka="k", redis="r", first=first, second=second, recovery=recovery, left_in_log=left, seconds=9.0)


def perfect() -> RunReport:
    return run(*(answer(version, image, says=image) for version in (1, 2) for image in range(4)))


def test_accuracy_counts_only_images_that_no_model_was_trained_on() -> None:
    # Image 2 is wrong but was trained on; image 3 is wrong and was not.
    report = run(*(answer(1, image, says=image if image < 2 else 9) for image in range(4)))
    assert report.versions[0].accuracy == pytest.approx(2 / 3, abs=1e-4)


def test_only_a_single_good_response_counts_as_answered() -> None:
    report = run(
        answer(1, 0, says=0),
        answer(1, 1, says=1),
        answer(1, 1, says=1),
        answer(1, 2, says=2, status=Status.INTERNAL),
    )
    assert (report.versions[0].answered, report.doubled) == (1, 1)
    assert report.versions[0].statuses == {"OK": 1, "INTERNAL": 1}
    assert report.requests_per_second == 1.5


def test_latency_and_workers_come_from_the_receipts() -> None:
    version = run(answer(1, 0, says=0, total=1000), answer(1, 1, says=1, total=3000)).versions[0]
    assert version.latency_ms["total"].p50 == 2.0
    assert version.latency_ms["computed"].p99 == 0.2
    assert version.longest_ms == 3.0
    assert version.workers == {"w on cpu": 2}


@given(st.lists(st.integers(1, 100), max_size=30))
def test_batches_are_counted_once_however_many_rows_report_them(batches: list[int]) -> None:
    sizes = [size for size in batches for _ in range(size)]
    counts = histogram(sizes)
    assert sum(counts.values()) == pytest.approx(len(batches), abs=0.05 * len(counts) + 1e-9)
    assert all(name in {"1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65+"} for name in counts)


def test_a_perfect_demo_holds() -> None:
    assert all(check.holds for check in verdict(outcome(perfect(), perfect())))


@pytest.mark.parametrize(
    "spoilt",
    [
        outcome(run(*(answer(v, i, says=i) for v in (1, 2) for i in range(3))), perfect()),
        outcome(perfect(), run(*(answer(v, i, says=i) for v in (1, 2) for i in range(3)))),
        outcome(perfect(), run(*(answer(v, i, says=7) for v in (1, 2) for i in range(4)))),
        outcome(perfect(), perfect(), left=1),
    ],
)
def test_a_demo_that_lost_or_mixed_up_something_does_not_hold(spoilt: Outcome) -> None:
    assert not all(check.holds for check in verdict(spoilt))
