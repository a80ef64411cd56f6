"""Plans of random pipelines: whatever their shape and whatever fails, every job is answered once, and the same."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.plans import INPUT, Answer, decode, encode
from tests.pipeline_kit import InOrder, Messages, chains, compiled, fates, job_inputs, pipelines

_heavy = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
_seeds = st.integers(0, 2**32)
_percents = st.sampled_from([0, 0, 15, 50])
_rows = st.sampled_from([0, 1, 3])


def _contents(answer: Answer) -> Any:
    if answer.failure is not None:
        return "failed"
    outputs = {tensor.name: (tensor.datatype, tensor.shape, bytes(tensor.data)) for tensor in answer.outputs}
    return outputs, answer.skipped, answer.missing


@_heavy
@given(pipelines(), _seeds, _percents, _rows)
def test_every_job_has_one_answer_and_every_branch_of_a_join_sends_one_part(
    spec: dict[str, Any], seed: int, percent: int, row_count: int
) -> None:
    job = Messages(compiled(spec), fates(seed, percent), random.Random(seed))
    job.run(job_inputs(row_count))
    job.check_edges()
    assert len({(ask.node, ask.branch) for ask in job.asked}) == len(job.asked)


@_heavy
@given(pipelines(), _seeds, _percents, _rows)
def test_messages_in_any_order_come_to_what_an_interpreter_with_everything_at_hand_does(
    spec: dict[str, Any], seed: int, percent: int, row_count: int
) -> None:
    plan = compiled(spec)
    job = Messages(plan, fates(seed, percent), random.Random(seed))
    found = job.run(job_inputs(row_count))
    expected = InOrder(plan, fates(seed, percent), job.parts).run(job_inputs(row_count))
    assert _contents(found) == _contents(expected)


@_heavy
@given(chains(), _seeds, _percents, _rows)
def test_a_chain_leads_straight_on_to_where_the_long_way_leads(
    spec: dict[str, Any], seed: int, percent: int, row_count: int
) -> None:
    plan = compiled(spec)
    assert INPUT in plan.straight
    Messages(plan, fates(seed, percent), random.Random(seed)).run(job_inputs(row_count))  # compares each step


@_heavy
@given(pipelines(), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_change_the_digest(spec: dict[str, Any], order: random.Random) -> None:
    assert compiled(_shuffled(spec, order)).digest == compiled(spec).digest


def _shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: _shuffled(value[key], order) for key in keys}
    return [_shuffled(inner, order) for inner in value] if isinstance(value, list) else value


@_heavy
@given(pipelines())
def test_a_decoded_plan_is_the_one_that_was_encoded(spec: dict[str, Any]) -> None:
    plan = compiled(spec)
    again = decode(encode(plan))
    assert again == plan
    assert again.encoded == plan.encoded
    assert again.digest == plan.digest
