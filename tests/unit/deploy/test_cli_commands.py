"""The command line as it is called: help, errors in one sentence, exit statuses, and how a stack is found."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from deploy.cli.app import run
from deploy.cli.connection import find_environment
from deploy.cli.output import print_json, print_json_line
from deploy.cli.readiness import is_ready, progress
from deploy.cli.status import render
from deploy.embedded.connection import (
    StackFile,
    default_data_folder,
    holder,
    lock_data,
    read_stack_file,
    remove_stack_file,
    write_stack_file,
)

COMMANDS = (
    *("up", "demo", "apply", "status", "infer", "scale", "drain", "quota", "models", "knobs", "trace", "env"),
    *("dead", "pipeline", "blobs"),
)
STACK = StackFile(kafka_bootstrap="127.0.0.1:1", redis_url="redis://:secret@127.0.0.1:2/0", prefix="p", pool="q")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stack of the developer's own is found, and nothing that a command sets stays."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    return int(ended.value.code or 0)


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "..." not in text.partition("\nCommands:")[2], "a summary is too long for a terminal of 80 columns"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, command, "--help") == 0
    assert f"Usage: headrace {command}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from headrace import __version__

    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"headrace {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status"], "headrace up"),
        (["models", "--data", "/nowhere"], "start one with `headrace up --data /nowhere`, or set"),
        (["apply", "-f", "nix.yaml"], "there is no fleet file nix.yaml"),
        (["infer", "digits"], "--input"),
        (["scale", "digits@2", "many"], "write one, or auto"),
        (["up", "--kafka", "pulsar"], "choose embedded, home, docker"),
        (["up", "--fleet", "nix.yaml"], "there is no fleet file nix.yaml"),
    ],
)
def test_a_wrong_call_says_what_to_do_and_exits_with_2(
    arguments: Sequence[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    streams = capsys.readouterr()
    assert says in streams.err
    assert "Traceback" not in streams.err
    assert not streams.out


def test_a_redis_that_is_away_is_a_sentence_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("HEADRACE_REDIS__URL", "redis://:secret@127.0.0.1:1/0")
    assert call(monkeypatch, "status") == 1
    error = capsys.readouterr().err
    assert "no Redis answers at 127.0.0.1:1/0" in error
    assert "secret" not in error


def test_a_traceback_comes_only_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_LOG__LEVEL", "DEBUG")
    assert call(monkeypatch, "status") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_misspelt_variable_is_refused_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("HEADRACE_REDIS__URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRP", "127.0.0.1:1")
    assert call(monkeypatch, "status") == 2
    assert "did you mean HEADRACE_KAFKA__BOOTSTRAP?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["dead", "list", "--help"]])
def test_output_that_nobody_reads_ends_a_command_quietly(arguments: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "deploy.cli", *arguments], stdout=writes, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")


def test_another_pipe_that_breaks_is_a_failure() -> None:
    script = """
from deploy.cli import app

@app.app.command()
def breaks() -> None:
    raise BrokenPipeError

app.run()
"""
    done = subprocess.run([sys.executable, "-P", "-c", script, "breaks"], stdout=subprocess.PIPE, check=False)
    assert done.returncode == 1


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"data": [[1.5, math.nan], (math.inf, -math.inf)], "n": 3, "text": "NaN"}
    print_json(value)
    print_json_line(value)
    lines = capsys.readouterr().out
    found = {"data": [[1.5, None], [None, None]], "n": 3, "text": "NaN"}
    assert json.loads(lines.rpartition("\n{")[0]) == json.loads(lines.splitlines()[-1]) == found


def test_help_answers_quickly() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "deploy.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 5.0  # a bound for a machine that is busy with other tests
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"asyncio", "numpy", "aiokafka", "redis", "pydantic", "rich.console", "yaml", "uvloop", "msgspec"}
    assert not loaded & heavy


# --- how a stack is found --------------------------------------------------------------------------------------------


def test_the_data_folder_follows_the_desktop_standard() -> None:
    assert default_data_folder({"XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/x/headrace")
    assert default_data_folder({"HOME": "/h"}) == Path("/h/.local/share/headrace")


def test_a_stack_file_counts_only_while_its_stack_runs(tmp_path: Path) -> None:
    assert read_stack_file(tmp_path) is None
    lock = lock_data(tmp_path)
    assert lock is not None
    write_stack_file(tmp_path, STACK)
    assert read_stack_file(tmp_path) == STACK
    assert holder(tmp_path) == os.getpid()
    os.close(lock)  # as the kernel does when the stack is killed
    assert read_stack_file(tmp_path) is None
    remove_stack_file(tmp_path)
    remove_stack_file(tmp_path)


def test_two_stacks_never_share_a_folder(tmp_path: Path) -> None:
    lock = lock_data(tmp_path)
    assert lock is not None
    assert lock_data(tmp_path) is None
    os.close(lock)


def test_only_its_owner_may_read_the_password(tmp_path: Path) -> None:
    write_stack_file(tmp_path, STACK)
    assert (tmp_path / "stack.json").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A folder on which a stack runs, as far as other commands can tell."""
    folder = tmp_path / "share" / "headrace"
    folder.mkdir(parents=True)
    lock_data(folder)
    write_stack_file(folder, STACK)
    return folder


@pytest.mark.usefixtures("running")
def test_a_running_stack_is_found_without_flags() -> None:
    assert find_environment(None)["HEADRACE_REDIS__URL"] == STACK.redis_url
    assert find_environment(None)["HEADRACE_REDIS__POOL"] == "q"


def test_the_environment_wins_over_the_file_and_a_flag_over_both(
    running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP", "elsewhere:9092")
    assert find_environment(None)["HEADRACE_KAFKA__BOOTSTRAP"] == "elsewhere:9092"
    assert find_environment(None)["HEADRACE_REDIS__URL"] == STACK.redis_url
    monkeypatch.setenv("HEADRACE_REDIS__URL", "redis://elsewhere:6379/0")
    assert find_environment(None) == {}
    assert find_environment(running)["HEADRACE_KAFKA__BOOTSTRAP"] == STACK.kafka_bootstrap


@pytest.mark.usefixtures("running")
def test_a_shell_can_take_the_environment_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "env") == 0
    assert "export HEADRACE_REDIS__URL=redis://:secret@127.0.0.1:2/0\n" in capsys.readouterr().out
    assert call(monkeypatch, "env", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STACK.environment


def test_a_stack_file_of_another_version_is_an_error_with_its_remedy(
    running: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (running / "stack.json").write_bytes(msgspec.json.encode({"other": 1}))
    assert call(monkeypatch, "status") == 2
    assert "Start it again" in capsys.readouterr().err


# --- what is shown ---------------------------------------------------------------------------------------------------


def worker(**more: object) -> dict[str, object]:
    known: dict[str, object] = {
        "lease": "digits-2-a", "state": "active", "node": "n", "devices": ["CPU-n-0"], "partitions": "0-7",
        "owned": 8, "wanted": 8, "age_seconds": 200.0, "expires_seconds": 9.0, "reason": "",
    }  # fmt: skip
    return known | more


def deployment(**more: object) -> dict[str, object]:
    known: dict[str, object] = {
        "name": "digits@2", "is_deployed": True, "wanted": 2, "by_hand": False, "min": 1, "max": 4, "active": 2,
        "starting": 0, "draining": 0, "ending": 0, "waiting": None, "partitions": 16, "unowned": [],
        "unowned_reason": "", "workers": [worker(), worker(lease="digits-2-b")], "lag": 0,
    }  # fmt: skip
    return known | more


def text(view: dict[str, object]) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(width=160, file=stream).print(render(view))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("more", "ready"),
    [
        ({}, True),
        ({"active": 1}, False),
        ({"active": 3}, False),
        ({"starting": 1}, False),
        ({"draining": 1}, False),
        ({"unowned": [3]}, False),
        ({"partitions": 0}, False),
        ({"partitions": 0, "wanted": 0, "active": 0}, True),
        ({"workers": [worker(owned=7), worker()]}, False),
        ({"workers": [worker(owned=16, wanted=16), worker(owned=0, wanted=0)]}, False),  # before the new one's first
        ({"workers": [worker(state="quarantine", owned=7), worker(), worker()]}, True),
    ],
)
def test_ready_means_workers_and_partitions_are_where_they_should_be(more: dict[str, object], *, ready: bool) -> None:
    assert is_ready(deployment(**more)) is ready


def test_progress_says_why_it_waits() -> None:
    assert progress(deployment()) == "digits@2: 2 of 2 workers ready"
    assert progress(deployment(active=0, starting=2)) == "digits@2: 0 of 2 workers ready, 2 starting"
    waiting = {"missing": 2, "reason": "no device fits", "explanation": "no device has room", "retry_seconds": None}
    assert progress(deployment(active=0, waiting=waiting)).endswith("; no device has room")
    assert progress(deployment(active=3)) == "digits@2: 3 workers, 2 wanted, partitions are handed over"


def test_status_shows_deployments_workers_and_devices() -> None:
    device = {
        "id": "CPU-n-0", "kind": "cpu", "name": "2 cores", "health": "ok", "mode": "cpu", "workers": 2,
        "memory_mib": 1000, "memory_free_mib": 488, "compute": 200, "compute_free": 150,
    }  # fmt: skip
    node = {"name": "n", "state": "ready", "hold": "", "host": "n", "silent_seconds": 0.4, "devices": [device]}
    shown = text({"deployments": [deployment(workers=[worker()], lag=7)], "nodes": [node]})
    for word in ("digits@2", "2/2", "1-4", "ready", "digits-2-a", "0-7", "3 min", "50/200 %", "512/1000"):
        assert word in shown


def test_status_says_why_something_waits() -> None:
    waiting = {"missing": 1, "reason": "no device fits", "explanation": "no device has room", "retry_seconds": 4.0}
    shown = text({"deployments": [deployment(waiting=waiting, lag=None)], "nodes": []})
    assert "no device has room; next try in 4 s" in shown
    assert "No node is registered" in shown
    assert "Nothing is deployed" in text({"deployments": [], "nodes": []})
