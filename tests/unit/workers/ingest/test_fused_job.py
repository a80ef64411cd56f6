"""Jobs in memory: the same answers as an interpreter with everything at hand, in whatever order models end."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.advance import advance, start
from contracts.messages import Status
from contracts.plans import Answer, Ask, Plan
from tests.pipeline_kit import InOrder, compiled, fates, job_inputs, pipelines, run_model
from workers.ingest.fused_job import FusedJob, Join


def contents(answer: Answer | None) -> Any:
    assert answer is not None
    if answer.failure is not None:
        return "failed"
    outputs = {tensor.name: (tensor.datatype, tensor.shape, bytes(tensor.data)) for tensor in answer.outputs}
    return outputs, answer.skipped, answer.missing


def ended(job: FusedJob, ask: Ask, fate: Any) -> list[Ask]:
    outcome = run_model(job.plan.by_name[ask.node], ask.branch, {tensor.name: tensor for tensor in ask.inputs}, fate)
    return job.take(advance(job.plan, ask.node, ask.branch, outcome, ask.carried))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pipelines(certain=True), st.integers(0, 2**32), st.sampled_from([0, 0, 15, 50]), st.sampled_from([0, 1, 3]))
def test_a_fused_job_has_the_answer_of_the_interpreter(
    spec: dict[str, Any], seed: int, percent: int, row_count: int
) -> None:
    plan, fate, order = compiled(spec), fates(seed, percent), random.Random(seed)
    job = FusedJob(plan)
    asks = job.take(start(plan, job_inputs(row_count), {"k": 1}))
    while asks and job.answer is None:
        asks += ended(job, asks.pop(order.randrange(len(asks))), fate)
    assert contents(job.answer) == contents(InOrder(plan, fate, {}).run(job_inputs(row_count)))


SPEC = {
    "name": "vote", "version": 1, "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}],
    "steps": {
        "one": {"model": "m@1", "inputs": {"x": "input.a"}},
        "two": {"model": "n@1", "inputs": {"x": "input.a"}},
        "mean": {"reduce": "mean", "inputs": {"y": ["one.y", "two.y"]}, "require": "best_effort", "timeout_ms": 500},
    },
    "outputs": {"y": "mean.y"},
}  # fmt: skip


def begun() -> tuple[Plan, FusedJob, list[Ask]]:
    plan = compiled(SPEC)
    job = FusedJob(plan)
    return plan, job, job.take(start(plan, job_inputs(1)[:1], {}))


def test_a_join_may_only_wait_so_long_after_its_first_part() -> None:
    _, job, (first, second) = begun()
    assert ended(job, first, lambda *_: True) == []
    assert job.begun == [(Join("mean", ()), 500)]
    assert job.late(Join("mean", ())) == []
    assert job.answer is not None
    assert job.answer.failure is None
    assert job.answer.missing == ("two",)
    early = job.answer
    assert ended(job, second, lambda *_: True) == []
    assert job.answer is early


def test_at_the_end_of_the_jobs_time_its_joins_go_on_with_what_there_is() -> None:
    _, job, (first, _) = begun()
    assert ended(job, first, lambda *_: False) == []
    assert job.all_late() == []
    assert job.answer is not None
    assert job.answer.failure is not None
    assert job.answer.failure.status is Status.INTERNAL


def test_joins_inside_of_a_map_are_late_before_what_puts_its_rows_together() -> None:
    body = {
        "one": {"model": "m@1", "inputs": {"x": "row.r"}},
        "two": {"model": "n@1", "inputs": {"x": "row.r"}},
        "mean": {"reduce": "mean", "inputs": {"y": ["one.y", "two.y"]}, "require": "best_effort"},
    }
    steps = {"each": {"map": {"over": {"r": "input.a"}}, "steps": body, "outputs": {"y": "mean.y"}}}
    plan = compiled({**SPEC, "steps": steps, "outputs": {"y": "each.y"}})
    job = FusedJob(plan)
    for ask in job.take(start(plan, job_inputs(300)[:1], {})):
        if ask.node.endswith("one"):
            assert ended(job, ask, lambda *_: True) == []
    assert job.all_late() == []
    assert job.answer is not None
    assert job.answer.outputs[0].shape == (300, 2)
    assert job.answer.missing == ("each/two",)
