"""What a plan wants to happen, as records: ids, partitions, times, and what cannot be sent."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from contracts.advance import advance, start
from contracts.codec import decode_headers, decode_request, decode_response
from contracts.compile import compile_plan
from contracts.emissions import MAX_RECORD_BYTES, Job, Outbound, outbound
from contracts.messages import Ran, Receipt, ReplyAddress, Status
from contracts.names import ModelVersion
from contracts.parts import PartKind, decode_part, decode_part_headers, joins_partition
from contracts.pipelines import parse_pipeline
from contracts.plans import Ask, Emission, Failure, Plan, Value, child_id, decode
from contracts.tensors import Tensor

CHAIN = """
name: chain
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  one: {model: m@1, inputs: {row: input.row}, timeout_ms: 500}
  two: {model: m@2, inputs: {row: one.row}, on_error: skip}
outputs: {row: [two.row, one.row]}
topic: {partitions: 7}
"""
FAN = """
name: fan
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  a: {model: m@1, inputs: {row: input.row}}
  b: {model: m@2, inputs: {row: input.row}}
  both: {reduce: concat, inputs: {row: [a.row, b.row]}}
outputs: {row: both.row}
topic: {partitions: 7}
"""
REPLY = ReplyAddress("headrace.replies.svc", 3, "token")
RAN = Ran("one", Receipt(worker="w", batch_rows=2))


def plan_of(text: str) -> Plan:
    spec, _ = parse_pipeline(text, "test")
    return compile_plan(
        spec, pin=lambda name, version, _: ModelVersion(name, version or 1), signature_of=lambda _: None
    )


def job_of(plan: Plan, reply: ReplyAddress | None = REPLY) -> Job:
    return Job("job-1", plan, reply, priority="high", tenant="acme", traceparent="00-1")


def rows(count: int = 1) -> Tensor:
    return Tensor.from_numpy("row", np.zeros((count, 4), np.float32))


def send(job: Job, emissions: list[Emission], *, left_ms: int = 9000, partition: int | None = 5) -> list[Outbound]:
    return outbound(job, emissions, left_ms, prefix="headrace", partition_of=lambda _: partition, ran=RAN)


def test_a_step_carries_the_jobs_control_data_and_the_time_that_it_may_take() -> None:
    plan = plan_of(CHAIN)
    (record,) = send(job_of(plan), start(plan, [rows()], {}))
    headers, body = decode_headers(record.headers), decode_request(record.value)
    assert (record.topic, record.partition) == ("headrace.requests.m.1", 5)
    assert headers.id == child_id("job-1", "one") == record.key.decode()
    assert (headers.reply, headers.priority, headers.tenant, headers.traceparent) == (REPLY, "high", "acme", "00-1")
    assert headers.hop is not None
    assert (headers.ttl_ms, headers.hop.left_ms) == (500, 9000)
    assert (headers.hop.job, headers.hop.plan, headers.hop.pipeline) == ("job-1", plan.digest, "chain@1")
    assert ([t.name for t in body.inputs], body.ran) == (["row"], RAN)


def test_what_later_steps_need_travels_past_the_model() -> None:
    plan = plan_of(CHAIN)
    (record,) = send(job_of(plan), advance(plan, "one", (), Value({"row": rows()}), {}))
    body, headers = decode_request(record.value), decode_headers(record.headers)
    assert [tensor.name for tensor in body.carried] == ["one.row"]
    assert headers.hop is not None
    assert (headers.ttl_ms, headers.hop.left_ms) == (9000, None)


def test_all_parts_of_a_job_go_to_one_partition_of_those_that_the_plan_records() -> None:
    plan = plan_of(FAN)
    asks = send(job_of(plan), start(plan, [rows()], {}))
    assert [record.topic for record in asks] == ["headrace.requests.m.1", "headrace.requests.m.2"]
    (part,) = send(job_of(plan), advance(plan, "a", (), Value({"row": rows()}), {}))
    headers = decode_part_headers(part.headers)
    assert (part.topic, part.partition) == ("headrace.joins.fan.1", joins_partition("job-1", 7))
    assert (headers.kind, headers.source, headers.hop.step) == (PartKind.VALUE, "a", "both")
    assert [tensor.name for tensor in decode_part(part.value).env] == ["a.row"]


def test_an_answer_is_the_pipelines_and_says_what_it_did_without() -> None:
    plan = plan_of(CHAIN)
    last = advance(plan, "two", (), Failure(Status.POISON, "no", "two"), {"one.row": rows()})
    (record,) = send(job_of(plan), last)
    response, token = decode_response(record.headers, record.value)
    assert (record.topic, record.partition, token) == ("headrace.replies.svc", 3, "token")
    assert (response.id, response.model, response.version, response.status) == ("job-1", "chain", 1, Status.OK)
    assert response["row"].rows == 1
    assert response.receipt.worker == "w"


@pytest.mark.parametrize("reply", [None, ReplyAddress("elsewhere", 0, "token")])
def test_an_answer_goes_to_reply_topics_only(reply: ReplyAddress | None) -> None:
    plan = plan_of(CHAIN)
    failed = advance(plan, "one", (), Failure(Status.INVALID, "no", "one"), {})
    (record,) = send(job_of(plan, reply), failed)
    assert record.partition is None


def test_a_step_whose_model_has_no_topic_fails_as_the_plan_says() -> None:
    plan = plan_of(CHAIN)
    emissions = advance(plan, "one", (), Value({"row": rows()}), {})
    (record,) = send(job_of(plan), emissions, partition=None)
    response, _ = decode_response(record.headers, record.value)
    assert response.status is Status.OK  # two is skipped on error
    (record,) = send(job_of(plan), start(plan, [rows()], {}), partition=None)
    response, _ = decode_response(record.headers, record.value)
    assert response.status is Status.INTERNAL
    assert response.error is not None
    assert response.error.message == "step one: model m@1 has no topic: it is not deployed"
    assert response.error.retryable


def test_what_no_record_holds_is_a_typed_failure() -> None:
    large = rows(MAX_RECORD_BYTES // 16 + 1)
    chain, fan = plan_of(CHAIN), plan_of(FAN)
    (record,) = send(job_of(chain), start(chain, [large], {}))
    response, _ = decode_response(record.headers, record.value)
    assert response.error is not None
    assert "the request for step one is" in response.error.message
    (record,) = send(job_of(chain), advance(chain, "two", (), Value({"row": large}), {}))
    response, _ = decode_response(record.headers, record.value)
    assert (response.status, response.error is not None) == (Status.INTERNAL, True)
    (part,) = send(job_of(fan), advance(fan, "a", (), Value({"row": large}), {}))
    body = decode_part(part.value)
    assert decode_part_headers(part.headers).kind is PartKind.ERROR
    assert body.failure is not None
    assert (body.failure.step, body.failure.status) == ("a", Status.INTERNAL)


def test_a_job_out_of_time_asks_with_no_time_left() -> None:
    plan = plan_of(CHAIN)
    (record,) = send(job_of(plan), start(plan, [rows()], {}), left_ms=-5)
    assert isinstance(record.emission, Ask)
    assert decode_headers(record.headers).ttl_ms == 0


WIDE = """
name: wide
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}, {name: page, datatype: FP32, shape: [-1, 4]}]
steps:
  each:
    map: {over: input.row}
    steps:
      one: {model: m@1, inputs: {row: row.row, page: input.page}}
    outputs: {row: one.row}
outputs: {row: each.row}
"""


def test_rows_that_each_carry_much_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(WIDE)
    inputs = [Tensor.from_numpy("row", np.zeros((100, 4), np.float32)), replace(rows(1000), name="page")]
    emissions = start(plan, inputs, {})
    assert len(send(job_of(plan), emissions)) == 101
    monkeypatch.setattr("contracts.emissions.MAX_STEP_BYTES", 1_000_000)
    (answer,) = send(job_of(plan), emissions)
    response, _ = decode_response(answer.headers, answer.value)
    assert response.status is Status.INTERNAL
    assert response.error is not None
    assert "101 records" in response.error.message


def test_values_that_cannot_be_read_end_a_job_whose_model_has_no_topic() -> None:
    plan = plan_of(CHAIN)
    (ask,) = advance(plan, "one", (), Value({"row": rows()}), {})
    assert isinstance(ask, Ask)
    broken = Tensor("one!", "BYTES", (7,), memoryview(b"\xff"))
    (answer,) = send(job_of(plan), [replace(ask, carried={"one!": broken})], partition=None)
    response, _ = decode_response(answer.headers, answer.value)
    assert response.status is Status.INTERNAL


def test_a_step_goes_into_the_lane_of_its_job_where_the_model_has_one() -> None:
    plain = plan_of(FAN)
    plan = replace(plain, lanes=(ModelVersion("m", 1),))
    assert plan.laned == {ModelVersion("m", 1)}
    assert not plain.laned
    assert b"lanes" not in plain.encoded  # what was stored before there were any has the same digest
    assert plan.digest != plain.digest
    assert decode(plan.encoded) == plan
    asks = start(plan, [rows()], {})
    assert [one.topic for one in send(job_of(plan), asks)] == ["headrace.requests.m.1.high", "headrace.requests.m.2"]
    calm = replace(job_of(plan), priority="normal")
    assert [one.topic for one in send(calm, asks)] == ["headrace.requests.m.1", "headrace.requests.m.2"]


def test_a_lane_that_is_still_to_be_made_holds_no_step_up() -> None:
    plan = replace(plan_of(FAN), lanes=(ModelVersion("m", 1),))

    def partition_of(topic: str) -> int | None:
        return None if topic.endswith(".high") else 2

    found = outbound(job_of(plan), start(plan, [rows()], {}), 9000, prefix="headrace", partition_of=partition_of)
    assert [(one.topic, one.partition) for one in found] == [("headrace.requests.m.1", 2), ("headrace.requests.m.2", 2)]
