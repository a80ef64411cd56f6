"""The real binding against a stub of the driver's library: struct sizes, versions of calls, errors to exceptions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.kit import ROOT

pytest.importorskip("pynvml", reason="the binding nvidia-ml-py is not installed")

STUB = Path(__file__).with_name("nvml_stub.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    output = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", output, STUB], check=True, timeout=20)
    return folder


def report(library: Path, mode: str = "") -> dict[str, Any]:
    environment = os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_STUB": mode, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "tests.integration.agent.nvml_report"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=20)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_call_reads_what_the_driver_wrote(library: Path) -> None:
    found = report(library)
    assert found["versions"] == ["570.1", "12.8"]
    assert found["gpu"] == {
        "index": 0,
        "uuid": "GPU-stub",
        "name": "NVIDIA Stub",
        "memory": {"total": 1000 << 20, "reserved": 100 << 20, "used": 50 << 20},
        "compute_capability": [9, 0],
        "pci_bus_id": "00000000:18:00.0",
        "numa_node": None,  # this driver has no such call
        "is_mig": False,  # this one says that it is not supported
        "is_exclusive": True,
        "is_lost": False,
    }
    assert found["reading"] == [0x41, 2, True]
    assert found["rates"] == [42, 34, 95.0]
    assert found["processes"] == [{"pid": 12, "memory_bytes": 5 << 20}]
    event = {"uuid": "GPU-stub", "xid": 79, "is_double_bit": False, "recovery_action": False}
    assert found["events"] == [event, None]


def test_a_lost_device_is_known_by_its_id(library: Path) -> None:
    found = report(library, "lost")
    assert (found["gpu"]["uuid"], found["gpu"]["is_lost"], found["health"]) == ("GPU-stub", True, "lost")


def test_a_library_without_a_driver_is_no_gpu(library: Path) -> None:
    assert report(library, "driver") == {"absent": "no NVIDIA driver: Driver Not Loaded"}
