"""What commands show of requests and pipelines, and which mistakes of a caller they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from contracts.adapters.kafka import Record
from contracts.adapters.registry import RegisteredPipeline, RegistryState
from contracts.codec import encode_headers, encode_response, encode_step, encode_stream_headers
from contracts.errors import ConfigurationError, InternalError, InvalidRequest, ModelNotFound
from contracts.messages import (
    Hop,
    Ran,
    Receipt,
    RequestBody,
    RequestHeaders,
    Response,
    ResponseBody,
    Status,
    ran_after,
)
from contracts.names import ModelVersion
from contracts.tensors import Ref, Tensor
from deploy.cli.app import run
from deploy.cli.inputs import response_text
from deploy.cli.inspection import chained_plan, shown_tensor
from deploy.cli.inspection import render as inspected
from deploy.cli.timeline import describe, lines_of
from deploy.cli.trace import render

RECEIPT = Receipt(worker="w-1", device="cpu", batch_rows=4, queued_us=2000, batched_us=300, computed_us=1000)


def record(topic: str, at_ms: int, headers: Sequence[tuple[str, bytes]], value: bytes | None = b"") -> Record:
    return Record(topic, 0, 0, at_ms, 1, None, value, headers)


def answered(asked: Record) -> dict[str, Any]:
    headers = [("v", b"1.0"), ("id", b"r-1"), ("status", b"OK"), ("to", b"t")]
    reply = record("headrace.replies.cli", 107, headers, encode_response(ResponseBody("m", 1, (), receipt=RECEIPT)))
    return describe("r-1", lines_of([asked, reply], "headrace"))


def shown(timeline: dict[str, Any]) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(timeline))
    return capture.get()


@pytest.mark.parametrize(
    "hop", [None, Hop("r-1", "0" * 32, "p@1", "", (), 0)], ids=["of a model", "of a fused pipeline"]
)
def test_the_trace_of_a_request_to_one_worker_shows_its_times_without_a_column_for_steps(hop: Hop | None) -> None:
    timeline = answered(record("headrace.requests.m.1", 100, encode_headers(RequestHeaders("r-1", None, hop=hop))))
    (step,) = timeline["steps"]
    assert (step["computed_ms"], step["batch_rows"], step["worker"], step["ended_ms"]) == (1.0, 4, "w-1", 7)
    text = shown(timeline)
    assert "OK after 7 ms" in text
    assert " step " not in text
    assert "w-1" in text


def test_the_answer_of_a_chained_pipeline_leads_to_its_trace_and_names_what_was_left_out() -> None:
    response = Response("r-1", Status.OK, "p", 1, receipt=RECEIPT, parameters={"missing": "forest"})
    text = response_text(response, is_chained=True)
    assert text.splitlines() == [
        "missing = forest",
        (
            "p@1 answered in 0.0 ms (queued 2.0, batched 0.3, computed 1.0, returned 0.0); "
            "`headrace trace r-1` shows its steps"
        ),
    ]
    assert "by w-1 on cpu, in a batch of 4" in response_text(response)


def test_the_parts_of_a_stream_are_one_event_each_run_and_say_nothing_of_times() -> None:
    asked = record("headrace.requests.m.1", 100, encode_headers(RequestHeaders("r-1", None, stream=True)))
    runs = ["w.1", "w.1", "w.2", "w.2", "w.2"]
    replies = [
        record(
            "headrace.replies.cli",
            101 + index,
            encode_stream_headers("r-1", Status.PARTIAL, "t", index=index, run=run),
            encode_response(ResponseBody("m", 1, (), final=False)),
        )
        for index, run in enumerate(runs)
    ]
    body = encode_response(ResponseBody("m", 1, (), receipt=RECEIPT, index=3))
    end = record("headrace.replies.cli", 120, encode_stream_headers("r-1", Status.OK, "t", index=3, run="w.2"), body)
    timeline = describe("r-1", lines_of([asked, *replies, end], "headrace"))
    (step,) = timeline["steps"]
    assert (step["computed_ms"], step["ended_ms"], timeline["status"], timeline["took_ms"]) == (1.0, 20, "OK", 20)
    assert [(event["kind"], event["detail"]) for event in timeline["events"][1:]] == [
        ("partial", "2 of run w.1"),
        ("partial", "3 of run w.2"),
        ("response", "OK, 3 parts before"),
    ]


def test_the_trace_of_a_job_shows_each_steps_own_times_though_the_receipt_adds_them_up() -> None:
    def asked(step: str, at: int, ran: Ran | None) -> Record:
        hop = Hop("r-1", "0" * 32, "p@1", step)
        value = encode_step(RequestBody((Tensor("x", "FP32", (1, 1), memoryview(bytes(4))),), ran=ran))
        return record(f"headrace.requests.{step}.1", at, encode_headers(RequestHeaders("c", None, hop=hop)), value)

    one = ran_after(None, "one", RECEIPT, ())
    two = ran_after(one, "two", RECEIPT, ())
    headers = [("v", b"1.0"), ("id", b"r-1"), ("status", b"OK"), ("to", b"t")]
    body = encode_response(ResponseBody("p", 1, (), receipt=two.whole, ran=two))
    records = [asked("one", 100, None), asked("two", 105, one), record("headrace.replies.cli", 110, headers, body)]
    timeline = describe("r-1", lines_of(records, "headrace"))
    found = [(step["step"], step["queued_ms"], step["computed_ms"], step["ended_ms"]) for step in timeline["steps"]]
    assert found == [("one", 2.0, 1.0, 5), ("two", 2.0, 1.0, 10)]


def test_only_steps_of_chained_pipelines_can_be_inspected() -> None:
    fused = RegisteredPipeline(name="p", version=1, spec={"fused": True}, joins=8)
    state = RegistryState(models={}, deployments={}, routes={}, revision=1, pipelines={ModelVersion("p", 1): fused})
    with pytest.raises(ConfigurationError, match="there is no pipeline digits; registered: p@1"):
        chained_plan(state, "digits")
    with pytest.raises(ConfigurationError, match="p@1 is fused"):
        chained_plan(state, "p@1")


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", (2, 2)), ("BYTES", (2,))])
def test_a_tensor_that_lies_in_the_store_is_shown_by_its_size(datatype: str, shape: tuple[int, ...]) -> None:
    stored = shown_tensor(Tensor("x", datatype, shape, ref=Ref("0" * 64, 16)))
    assert stored == {"datatype": datatype, "shape": list(shape), "stored_bytes": 16}
    request = {"job": "j", "branch": "", "what": "request", "where": "t/0/1", "inputs": {"x": stored}, "outputs": None}
    assert inspected([request]).splitlines()[-1] == f"  in   x  {datatype} {list(shape)}  16 bytes in the store"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelNotFound("no version of x is deployed"), 2),
        (InvalidRequest("it takes image"), 2),
        (InternalError("x"), 1),
    ],
)
def test_what_the_caller_got_wrong_exits_with_2(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr("deploy.cli.app.app", fails)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == status
    assert capsys.readouterr().err == f"headrace: {error}\n"
