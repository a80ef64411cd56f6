"""The load tells a fleet that stood still from callers that had no core to run on."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from producer.client import InferenceClient
from tests.chaos.load import Load

_UNASKED = cast("InferenceClient", None)


def seen(start: float, end: float, step: float = 0.005) -> list[float]:
    return [float(at) for at in np.arange(start, end, step)]


def test_a_partition_that_gave_no_answer_for_two_seconds_stood_still_for_two_seconds() -> None:
    load = Load(_UNASKED, pulses=seen(0, 4))
    load.answers[0] = seen(0, 4)
    load.answers[1] = [*seen(0, 1), *seen(3, 4)]
    assert load.stall(0, 4, iter([0])) == pytest.approx(0.005, abs=0.001)
    assert load.stall(0, 4, iter([1])) == pytest.approx(2.0, abs=0.02)
    assert load.stall(1.5, 2.5, iter([1])) == pytest.approx(1.0, abs=0.02)


def test_a_caller_that_did_not_run_does_not_blame_the_fleet() -> None:
    load = Load(_UNASKED, pulses=[*seen(0, 1), *seen(3, 4)])
    load.answers[0] = [*seen(0, 1), *seen(3, 4)]
    assert load.stall(0, 4, iter([0])) <= 0.04
