"""What `headrace knobs` makes of its arguments, and what knobs make of a model's batching."""

from __future__ import annotations

import pytest

from contracts.errors import ConfigurationError
from contracts.serving_specs import BatchingSpec
from contracts.specs import Knobs
from deploy.cli.knobs import changed, shown


def test_changes_are_laid_over_what_was_set_before() -> None:
    after = changed({"slo_ms": 20.0}, ["max_batch_delay_ms=5", "preferred_batch_sizes=4,8"])
    assert Knobs.model_validate(after) == Knobs(slo_ms=20, max_batch_delay_ms=5, preferred_batch_sizes=(4, 8))
    assert changed(after, ["slo_ms=default", "max_batch_delay_ms=default", "preferred_batch_sizes=default"]) == {}


@pytest.mark.parametrize("change", ["max_batch_delay", "speed=9", "=1", "order=per_key"])
def test_what_is_no_knob_is_refused_with_those_there_are(change: str) -> None:
    with pytest.raises(ConfigurationError, match="max_batch_size"):
        changed({}, [change])


def test_knobs_change_what_they_name_and_nothing_else() -> None:
    own = BatchingSpec(max_batch_size=32, order="per_key")
    assert Knobs().applied(own) == own
    assert Knobs(max_batch_size=8, overflow="reject").applied(own) == own.model_copy(
        update={"max_batch_size": 8, "overflow": "reject"}
    )


def test_knobs_that_make_no_sense_with_the_model_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="above the model's own 32"):
        Knobs(max_batch_size=64).applied(BatchingSpec(max_batch_size=32))
    with pytest.raises(ConfigurationError, match="preferred_batch_sizes"):
        Knobs(max_batch_size=4).applied(BatchingSpec(max_batch_size=32, preferred_batch_sizes=(8, 16)))


def test_a_knob_is_shown_as_it_would_be_set() -> None:
    assert [shown(value) for value in (None, (), (4, 8), 5.0, "delay")] == ["-", "-", "4,8", "5.0", "delay"]
