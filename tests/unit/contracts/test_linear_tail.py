"""Where a job's answer passes in parts, and that the parts are together what the answer is in one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from contracts.advance import advance
from contracts.codec import decode_headers, decode_response
from contracts.compile import Compiled, check_pipeline
from contracts.emissions import Job, outbound
from contracts.linear_tail import end_of, part_of, tail_of
from contracts.messages import MAX_TTL_MS, Hop, Ran, Receipt, ReplyAddress, RequestHeaders, Status, ran_after
from contracts.names import ModelVersion
from contracts.pipelines import parse_pipeline
from contracts.plans import Answer, Ask, Env, Failure, Outcome, Plan, Skip, Value
from contracts.specs import TensorSpec
from contracts.tensors import Tensor
from contracts.typing_pass import Signature
from tests.pipeline_kit import Messages, compiled, fates, job_inputs, pipelines

_X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
_Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
_HEAD = "name: p\nversion: 1\ninputs: [{name: x, datatype: FP32, shape: [-1, 2]}]\nsteps:\n"
_LEAD = "  lead: {model: lead@1, inputs: {x: input.x}}\n"
_TELL = "  tell: {model: teller@1, inputs: {x: lead.y}}\n"
_HALF = "  half: {reduce: mean, inputs: {y: [tell.y, {const: [[0, 1]], datatype: FP32}]}}\n"
CHAIN = f"{_HEAD}{_LEAD}{_TELL}{_HALF}outputs: {{half: half.y, told: tell.y, lead: lead.y}}\n"


def checked(text: str) -> Compiled:
    spec, _ = parse_pipeline(text, "p.yaml")
    return check_pipeline(
        spec,
        pin=lambda name, version, _: ModelVersion(name, version or 1),
        signature_of=lambda key: Signature((_X,), (_Y,), streams=key.model == "teller"),
    )


def plan_of(text: str) -> Plan:
    plan = checked(text).plan
    assert plan is not None
    return plan


def tensor(name: str, *rows: list[float]) -> Tensor:
    return Tensor.from_numpy(name, np.array(rows, np.float32).reshape(-1, 2))


def contents(answer: Answer) -> dict[str, list[list[float]]]:
    assert answer.failure is None
    return {output.name: output.to_numpy().tolist() for output in answer.outputs}


# --- where it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "tail"),
    [
        (f"{_LEAD}{_TELL}outputs: {{y: tell.y}}", "tell"),
        (f"{_LEAD}{_TELL}{_HALF}outputs: {{y: half.y, lead: lead.y}}", "tell"),
        (f"{_LEAD}{_TELL}  last: {{model: last@1, inputs: {{x: tell.y}}}}\noutputs: {{y: last.y}}", "last"),
        (f"{_LEAD}{_TELL}  also: {{model: last@1, inputs: {{x: lead.y}}}}\noutputs: {{y: tell.y, z: also.y}}", None),
        (
            (
                "  rows:\n    map: {over: input.x}\n    steps:\n      tell: {model: teller@1, inputs: {x: row.x}}\n"
                "    outputs: {y: tell.y}\noutputs: {y: rows.y}"
            ),
            None,
        ),
        (
            "  c: {cascade: [lead@1, teller@1], inputs: {x: input.x}, confidence: y, threshold: 1}\noutputs: {y: c.y}",
            "c#2",
        ),
        ("  only: {reduce: concat, inputs: {y: [input.x, input.x]}}\noutputs: {y: only.y}", None),
    ],
    ids=["last step", "reducer behind", "model behind", "joined", "row of a map", "last stage", "no model"],
)
def test_the_tail_is_the_last_model_with_nothing_but_reducers_behind_it(steps: str, tail: str | None) -> None:
    plan = plan_of(_HEAD + steps)
    assert (plan.tail.node if plan.tail is not None else None) == tail
    assert [node.name for node in plan.nodes if tail_of(plan, node.name)] == ([tail] if tail else [])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (f"{_LEAD}{_TELL}  last: {{model: last@1, inputs: {{x: tell.y}}}}\noutputs: {{y: last.y}}", "other steps"),
        (
            f"{_LEAD}{_TELL}  also: {{model: last@1, inputs: {{x: lead.y}}}}\noutputs: {{y: tell.y, z: also.y}}",
            "a join",
        ),
        (
            (
                "  tell:\n    map: {over: input.x}\n    steps:\n      one: {model: teller@1, inputs: {x: row.x}}\n"
                "    outputs: {y: one.y}\noutputs: {y: tell.y}"
            ),
            "each row of a map",
        ),
    ],
)
def test_a_model_that_streams_in_vain_is_a_warning_at_its_step(steps: str, words: str) -> None:
    found = checked(_HEAD + steps)
    assert found.plan is not None
    (fault,) = found.faults
    assert fault.is_warning
    assert "teller@1 streams" in fault.message
    assert words in fault.message
    assert fault.path[:2] == ("steps", "tell")


def test_a_model_that_streams_last_is_none() -> None:
    assert checked(CHAIN).faults == ()


# --- what passes ------------------------------------------------------------------------------------------------------


def carried_of(plan: Plan, node: str, env: Env) -> Env:
    return {name: value for name, value in env.items() if name in plan.by_name[node].keep}


def test_the_parts_together_are_the_answer_in_one() -> None:
    plan = plan_of(CHAIN)
    carried = carried_of(plan, "tell", {"lead.y": tensor("lead.y", [7, 7])})
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    (whole,) = advance(plan, "tell", (), Value({"y": tensor("y", *rows)}), carried)
    assert isinstance(whole, Answer)
    parts = [contents(part_of(plan, "tell", {"y": tensor("y", row)}, carried)) for row in rows]
    end = end_of(plan, "tell", {}, carried, index=3, run="w.1")
    assert (end.index, end.run, end.skipped) == (3, "w.1", ())
    together: dict[str, list[list[float]]] = contents(end)
    for part in parts:
        assert part.keys() == {"half", "told"}
        for name, content in part.items():
            together.setdefault(name, []).extend(content)
    assert together == contents(whole)


def test_an_end_with_outputs_is_a_part_too_and_has_what_was_known_before() -> None:
    plan = plan_of(CHAIN)
    end = end_of(plan, "tell", {"y": tensor("y", [1, 3])}, {"lead.y": tensor("lead.y", [7, 7])}, index=0, run="w.1")
    assert contents(end) == {"half": [[0.5, 2.0]], "told": [[1.0, 3.0]], "lead": [[7.0, 7.0]]}


def test_a_stream_without_parts_is_a_step_that_was_skipped() -> None:
    plan = plan_of(CHAIN)
    end = end_of(plan, "tell", {}, {"lead.y": tensor("lead.y", [7, 7])}, index=0, run="w.1")
    assert contents(end) == {"half": [[0.0, 1.0]], "lead": [[7.0, 7.0]]}  # reducers leave skipped members out
    assert end.skipped == ("told",)


def test_a_part_that_a_reducer_cannot_take_is_the_jobs_failure() -> None:
    plan = plan_of(CHAIN)
    odd = Tensor.from_numpy("y", np.zeros((1, 3), np.float32))
    failure = part_of(plan, "tell", {"y": odd}, {"lead.y": tensor("lead.y", [7, 7])}).failure
    assert failure is not None
    assert failure.step == "half"


_heavy = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@_heavy
@given(
    spec=pipelines(),
    seed=st.integers(0, 2**32),
    on_error=st.sampled_from(["skip", "fail"]),
    with_reducer=st.booleans(),
)
def test_behind_a_tail_there_is_one_answer_and_a_single_part_with_the_end_is_all_of_it(
    spec: dict[str, Any], seed: int, on_error: str, *, with_reducer: bool
) -> None:
    sources = {name: source if isinstance(source, str) else source[0] for name, source in spec["outputs"].items()}
    spec["steps"]["last"] = {"model": "m-last", "inputs": {"x": list(sources.values())}, "on_error": on_error}
    if with_reducer:
        spec["steps"]["behind"] = {"reduce": "mean", "inputs": {"y": ["last.y", "last.y"]}, "require": "best_effort"}
        sources["b"] = "behind.y"
    spec["outputs"] = {**sources, "l": "last.y"}
    plan = compiled(spec)
    job = Messages(plan, fates(seed, 0), random.Random(seed))
    job.run(job_inputs(1))
    asked = next((ask for ask in job.asked if plan.tail is not None and ask.node == plan.tail.node), None)
    assume(asked is not None and plan.tail is not None)
    assert asked is not None
    assert plan.tail is not None
    outcomes: list[Outcome] = [Skip(), Failure(Status.INTERNAL, "no", asked.node)]
    value = {"y": tensor("y", [0.25, 0.75])}
    for outcome in (Value(value), *outcomes):
        (answer,) = advance(plan, asked.node, asked.branch, outcome, asked.carried)
        assert isinstance(answer, Answer)
    (whole,) = advance(plan, asked.node, asked.branch, Value(value), asked.carried)
    assert isinstance(whole, Answer)
    if whole.failure is None:
        part = part_of(plan, asked.node, value, asked.carried)
        end = end_of(plan, asked.node, {}, asked.carried, index=1, run="w")
        assert {output.name for output in part.outputs} <= plan.tail.outputs
        assert contents(part) | contents(end) == contents(whole)
        assert len(part.outputs) + len(end.outputs) == len(whole.outputs)
        assert not plan.tail.outputs.intersection(end.skipped)


# --- on the wire ------------------------------------------------------------------------------------------------------


def test_a_caller_who_takes_parts_is_known_at_every_step_of_its_job() -> None:
    plan = plan_of(CHAIN)
    headers = RequestHeaders("job-1", ReplyAddress("headrace.replies.svc", 0, "token"), stream=True)
    ask = Ask("tell", (), ModelVersion("teller", 1), (tensor("x", [1, 2]),), {}, {})
    (record,) = outbound(Job.of(headers, plan), [ask], MAX_TTL_MS, prefix="headrace", partition_of=lambda _: 0)
    again = decode_headers(record.headers)
    assert again.stream
    assert again.hop == Hop("job-1", plan.digest, "p@1", "tell")
    assert Job.of(again, plan).stream


def test_the_end_of_a_stream_says_its_place_and_a_failure_has_none() -> None:
    plan = plan_of(CHAIN)
    job = Job("job-1", plan, ReplyAddress("headrace.replies.svc", 0, "token"))
    for answer, place in (
        (Answer(index=3, run="w.1"), (3, "w.1")),
        (Answer(failure=Failure(Status.INTERNAL, "no", "tell"), index=3, run="w.1"), (0, "")),
        (Answer(), (0, "")),
    ):
        (record,) = outbound(job, [answer], 1, prefix="headrace", partition_of=lambda _: 0)
        response, _ = decode_response(record.headers, record.value)
        assert (response.index, response.run, response.final) == (*place, True)


def test_a_receipt_adds_up_the_way_to_the_answer_and_names_who_went_last() -> None:
    ran: Ran | None = None
    for number in (1, 2, 3):
        receipt = Receipt(worker=f"w{number}", attempt=number, queued_us=1, batched_us=10 * number, computed_us=100)
        ran = ran_after(ran, f"step-{number}", receipt, ())
    assert ran is not None
    assert ran.receipt.batched_us == 30
    whole = ran.whole
    assert (whole.queued_us, whole.batched_us, whole.computed_us) == (3, 60, 300)
    assert (whole.worker, whole.attempt) == ("w3", 3)
    plan = plan_of(CHAIN)
    job = Job("job-1", plan, ReplyAddress("headrace.replies.svc", 0, "token"))
    (record,) = outbound(job, [Answer()], 1, prefix="headrace", partition_of=lambda _: 0, ran=ran)
    assert decode_response(record.headers, record.value)[0].receipt == whole
