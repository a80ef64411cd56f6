"""`headrace dead` on a broker: what it lists, shows, sends again and deletes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import numpy as np
import pytest

from contracts import topics
from contracts.adapters.kafka import Admin, Partition, Producer, Reader, Record
from contracts.codec import encode_headers, encode_request
from contracts.dead_letters import Reason, Undertaker, dead_headers
from contracts.messages import RequestHeaders
from contracts.settings import KafkaSettings
from contracts.tensors import Tensor
from deploy.cli.app import run
from tests.helpers import unique_name

pytestmark = pytest.mark.kafka

BODY = encode_request([Tensor.from_numpy("row", np.ones((2, 3), np.float32))])


class Box:
    """A model's topics with dead letters in them, and the command line beside them."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self.model = unique_name("m")
        self.requests = topics.requests(settings.prefix, self.model, 1)

    def fill(self, *letters: tuple[str, Reason], source: str = "", also: str = "") -> None:
        """Put letters aside that came from a topic, by default version 1's; `also` is one more topic that there is."""
        asyncio.run(self._fill(letters, source or self.requests, also))

    async def _fill(self, letters: tuple[tuple[str, Reason], ...], source: str, also: str) -> None:
        admin, producer = Admin(self.settings), Producer(self.settings)
        await asyncio.gather(admin.open(), producer.open())
        dead = topics.dead(self.settings.prefix, self.model)
        await admin.ensure_topic(dead, 1)
        await admin.ensure_topic(self.requests, 3)
        await admin.ensure_topic(topics.requests(self.settings.prefix, self.model, 2), 3)
        if also:
            await admin.ensure_topic(also, 3)
        by = Undertaker(f"{self.model}@1", "sha256:abc", "lease-1", 17, "somewhere")
        for number, (name, reason) in enumerate(letters):
            own = encode_headers(RequestHeaders(name, None, 5000, attempt=3)) if name else [("junk", b"\xff")]
            headers = dead_headers(
                own,
                by,
                reason=reason,
                message="it does not like this",
                source=f"{source}/2/{number}",
                time_ms=1_700_000_000_000 + number,
                attempts=3,
            )
            await producer.send_and_wait(dead, 0, BODY, headers)
        await asyncio.gather(admin.close(), producer.close())

    def sent(self, version: int = 1, lane: str = "normal") -> list[Record]:
        """What was sent to a version's request topic, or to a lane of it."""
        return asyncio.run(self._sent(topics.lane(topics.requests(self.settings.prefix, self.model, version), lane)))

    async def _sent(self, topic: str) -> list[Record]:
        found: list[Record] = []
        reader = Reader(self.settings)
        await reader.open()
        partitions = [Partition(topic, n) for n in range(3)]
        left = sum(end - first for first, end in (await reader.bounds(partitions)).values())
        reader.assign(partitions)
        for partition in partitions:
            reader.begin(partition, 0)
        while len(found) < left:
            for records in (await reader.poll(timeout_ms=100)).values():
                found += records
        await reader.close()
        return found


@pytest.fixture
def box(log_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP", log_settings.bootstrap)
    monkeypatch.setenv("HEADRACE_KAFKA__PREFIX", log_settings.prefix)
    monkeypatch.setenv("HEADRACE_KAFKA__REQUEST_TIMEOUT_SECONDS", "2")
    monkeypatch.setenv("HEADRACE_REDIS__URL", "redis://127.0.0.1:1/0")  # dead letters need no Redis
    return Box(log_settings)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run_it(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["headrace", "dead", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == status, said.out + said.err
        return said.out if status == 0 else said.err

    return run_it


def test_letters_are_listed_with_why_and_when(box: Box, call: Any) -> None:
    box.fill(("first", "poison"), ("second", "unroutable"), ("", "invalid"))
    table = call("list", box.model)
    assert [line.split()[-1] for line in table.splitlines() if "it does not like" in line] == ["this"] * 3
    assert "3 dead letters (1 poison, 1 unroutable, 1 invalid)" in table
    chosen = json.loads(call("list", box.model, "--reason", "poison", "--json"))["letters"]
    assert [(letter["id"], letter["source"]) for letter in chosen] == [("first", f"{box.requests}/2/0")]
    assert json.loads(call("list", box.model, "--limit", "1", "--json"))["found"] == 3
    assert json.loads(call("list", box.model, "--since", "5m", "--json"))["found"] == 3
    assert json.loads(call("list", box.model, "--since", "2999-01-01", "--json"))["found"] == 0


def test_a_letter_is_shown_by_offset_and_by_id(box: Box, call: Any) -> None:
    box.fill(("first", "poison"), ("second", "poison"))
    text = call("show", box.model, "second")
    assert "poison: it does not like this" in text
    assert "lease-1 (token 17) on somewhere" in text
    assert "row FP32 [2, 3]" in text
    shown = json.loads(call("show", box.model, "0", "--json"))
    assert shown["id"] == "first"
    assert ["attempt", "3"] in shown["headers"]


def test_a_replay_sends_each_request_once_under_its_own_id(box: Box, call: Any) -> None:
    box.fill(("a", "poison"), ("b", "poison"), ("a", "poison"), ("", "invalid"))
    said = call("replay", box.model, "--dry-run")
    assert "2 of 3 requests would be sent again" in said
    assert box.sent() == []
    call("replay", box.model, "--reason", "poison", "--ttl", "9")
    found = {dict(record.headers)["id"] or b"": record for record in box.sent()}
    assert sorted(found) == [b"a", b"b"]
    record = found[b"a"]
    headers = dict(record.headers)
    assert record.value == BODY
    assert record.partition == 2
    assert headers["ttl"] == b"9000"
    assert headers["redriven"] == b"1"
    assert "attempt" not in headers
    assert not any(name.startswith("dead-") for name in headers)


def test_a_replay_may_ask_another_version_and_only_some_letters(box: Box, call: Any) -> None:
    box.fill(("a", "poison"), ("b", "poison"), ("c", "poison"))
    done = json.loads(call("replay", box.model, "a", "2", "--to-version", "2", "--rate", "50", "--json"))
    assert done["sent"] == 2
    assert sorted(dict(record.headers)["id"] or b"" for record in box.sent(2)) == [b"a", b"c"]
    assert box.sent(1) == []
    assert "was never deployed" in call("replay", box.model, "--to-version", "9", status=2)


def test_a_letter_goes_back_to_its_lane_or_where_that_is_gone_to_the_request_topic(box: Box, call: Any) -> None:
    high, low = (topics.lane(box.requests, priority) for priority in ("high", "low"))
    box.fill(("a", "poison"), source=low, also=low)
    box.fill(("b", "poison"), source=high)
    done = json.loads(call("replay", box.model, "--json"))
    assert done["to"] == {low: 1, box.requests: 1}
    assert [dict(record.headers)["id"] for record in box.sent(lane="low")] == [b"a"]
    (record,) = box.sent()
    assert dict(record.headers)["id"] == b"b"
    box.fill(source=high, also=high)
    assert json.loads(call("replay", box.model, "b", "--json"))["to"] == {high: 1}
    other = topics.requests(box.settings.prefix, box.model, 2)  # which has no lanes
    assert json.loads(call("replay", box.model, "a", "--to-version", "2", "--json"))["to"] == {other: 1}


def test_letters_are_deleted_before_a_moment_or_all(box: Box, call: Any) -> None:
    box.fill(("a", "poison"), ("b", "poison"))
    assert "0 dead letters" in call("purge", box.model, "--before", "1h")
    assert "2 dead letters" in call("purge", box.model, "--dry-run")
    assert json.loads(call("list", box.model, "--json"))["found"] == 2
    assert json.loads(call("purge", box.model, "--yes", "--json"))["deleted"] == 2
    assert "has no dead letters." in call("list", box.model)


def test_what_cannot_be_is_said_in_a_sentence(box: Box, call: Any) -> None:
    box.fill(("a", "poison"))
    assert "no dead letter zzz" in call("show", box.model, "zzz", status=2)
    assert "there is no reason" in call("list", box.model, "--reason", "bad", status=2)
    assert "is no moment" in call("list", box.model, "--since", "yesterday", status=2)
    assert "was never deployed here" in call("list", "nothing", status=2)
