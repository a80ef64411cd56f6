"""What an agent leaves for its successor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contracts.pool import Lease, Share
from workers.agent.records import Identity, Record, RunFolder
from workers.slots import slots_path

LEASE = Lease(
    id="digits-2-x",
    token=1_700_000_000_123,
    deployment="digits@2",
    models=("digits@2",),
    tenant="",
    node="n1",
    mode="cpu",
    shares=(Share("CPU-n1-0", 100, 25),),
    state="reserved",
    expires_unix_ms=1,
    created_unix_ms=1,
)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record = Record(LEASE, "boot", Identity(12, "345"), None)
    folder.save(record)
    folder.save(record)
    assert list(folder.load()) == [record]
    assert [path.name for path in tmp_path.iterdir()] == ["digits-2-x.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lease": 1}', b"\xff\xfe"])
def test_a_broken_record_is_removed_and_hides_no_other(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.save(Record(LEASE, "boot"))
    (tmp_path / "broken.json").write_bytes(content)
    assert [record.lease.id for record in folder.load()] == ["digits-2-x"]
    assert not (tmp_path / "broken.json").exists()


def test_a_worker_leaves_nothing_but_its_logs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save(Record(LEASE, "boot"))
    for path in (folder.socket(LEASE.id), folder.log(LEASE.id, "ingest"), folder.slots(LEASE.id)):
        path.write_bytes(b"")
    folder.remove(LEASE.id)
    folder.remove(LEASE.id)
    assert [path.name for path in tmp_path.iterdir()] == ["digits-2-x.ingest.log"]
    assert not folder.slots(LEASE.id).exists()


def test_agent_and_ingest_agree_on_where_the_slots_are(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).slots("a") == slots_path("a")


def test_a_log_that_has_grown_too_large_loses_its_older_half_and_its_writer_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    path = folder.log("a", "engine")
    with path.open("ab", buffering=0) as writer:
        for number in range(1000):
            writer.write(b"line %03d\n" % number)
        folder.trim_logs(4500)
        writer.write(b"after\n")
    lines = path.read_text().splitlines()
    assert lines[0] == "line 751"
    assert lines[-2:] == ["line 999", "after"]


def test_old_logs_of_ended_workers_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number, name in enumerate(["a", "b", "c", "d"]):
        for role in ("ingest", "engine"):
            folder.log(name, role).touch()
            os.utime(folder.log(name, role), (number, number))
    folder.prune_logs(2, frozenset({"a"}))
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "a", "d", "d"]


def test_a_path_that_no_socket_can_have_is_told_before_anything_is_started(tmp_path: Path) -> None:
    assert RunFolder(Path("/run/headrace")).fault("a" * 40) is None
    fault = RunFolder(Path("/run") / ("x" * 90)).fault("digits-2-1")
    assert fault is not None
    assert "choose a shorter run_dir" in fault
