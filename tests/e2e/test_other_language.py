"""A client in JavaScript that knows docs/protocol.md and nothing else is answered by a running fleet."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Terminal, Up
from tests.helpers import unique_name
from tests.servers import missing

CLIENT = ROOT / "tests" / "contract" / "kafkajs_client"
ZERO, INVALID = 0, 2


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client with its packages, in a folder of its own."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("no Node.js on the PATH")
    folder = tmp_path_factory.mktemp("kafkajs") / "client"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    if done.returncode:
        missing(f"npm cannot install kafkajs: {done.stderr.strip()[-300:]}")
    return folder / "client.mjs"


def ask(terminal: Terminal, client: Path, topic: str, *inputs: str) -> subprocess.CompletedProcess[str]:
    known = terminal.run("headrace env").stdout
    match = re.search(r"HEADRACE_KAFKA__BOOTSTRAP=['\"]?([\w.:,]+)", known)
    assert match, known
    replies = f"headrace.replies.{unique_name('js')}"
    return subprocess.run(
        ["node", str(client), match[1], topic, replies, "0", *inputs],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.timeout(180)
def test_kafkajs_is_answered(terminal: Terminal, up: Up, client: Path) -> None:
    assert up.process.poll() is None
    done = ask(terminal, client, "headrace.requests.digits.2")
    assert done.returncode == ZERO, done.stderr
    response = json.loads(done.stdout)
    assert response["status"] == "OK"
    (scores,) = response["outputs"]
    values = scores["values"]
    assert values.index(max(values)) == 0  # the picture is of a zero
    assert response["receipt"]["batch_rows"] == 1


@pytest.mark.timeout(180)
def test_kafkajs_is_told_what_is_wrong(terminal: Terminal, up: Up, client: Path) -> None:
    assert up.process.poll() is None
    wrong = [{"name": "image", "datatype": "FP32", "shape": [1, 3], "values": [1, 2, 3]}]
    done = ask(terminal, client, "headrace.requests.digits.2", json.dumps(wrong))
    assert done.returncode == INVALID, done.stderr
    response = json.loads(done.stdout)
    assert response["status"] == "INVALID"
    assert "must have shape [-1, 64]" in response["error"]["message"]
