"""What the processes of a worker find in their environment."""

from __future__ import annotations

from contracts.pool import Lease, Mode, Share
from workers.agent.environment import engine_environment, ingest_environment, threads

BASE = {
    "PATH": "/usr/bin",
    "HOME": "/home/a",
    "PYTHONPATH": "/srv",
    "LC_ALL": "C.UTF-8",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "HEADRACE_KAFKA__PASSWORD": "canary",
    "HEADRACE_REDIS__URL": "redis://:canary@h",
    "HEADRACE_AGENT__CORES": "2",
    "HEADRACE_LOG__LEVEL": "DEBUG",
    "HEADRACE_TEST_DIE_AT": "launching",
}


def lease(mode: Mode, *shares: Share) -> Lease:
    return Lease(
        id="a",
        token=1,
        deployment="d@1",
        models=("d@1",),
        tenant="",
        node="n",
        mode=mode,
        shares=shares,
        state="reserved",
        expires_unix_ms=0,
        created_unix_ms=0,
    )


def test_an_engine_gets_no_credential() -> None:
    found = engine_environment(BASE, lease("cpu", Share("CPU-n-0", 100, 25)))
    assert "canary" not in " ".join(found.values())
    assert {"PATH", "HOME", "PYTHONPATH", "LC_ALL", "HEADRACE_LOG__LEVEL", "HEADRACE_TEST_DIE_AT"} <= found.keys()


def test_an_engine_sees_the_devices_of_its_lease_only() -> None:
    on_gpu = engine_environment(BASE, lease("slice", Share("GPU-1", 100, 25)))
    assert (on_gpu["CUDA_VISIBLE_DEVICES"], on_gpu["CUDA_DEVICE_ORDER"]) == ("GPU-1", "PCI_BUS_ID")
    gang = engine_environment(BASE, lease("whole", Share("GPU-1", 1, 100), Share("GPU-2", 1, 100)))
    assert gang["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    on_cpu = engine_environment(BASE, lease("cpu", Share("CPU-n-0", 100, 25)))
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""


def test_an_engine_has_as_many_threads_as_its_lease_has_cores() -> None:
    assert [threads(lease("cpu", Share("c", 1, compute))) for compute in (1, 100, 101, 400)] == [1, 1, 2, 4]
    assert threads(lease("whole", Share("GPU-1", 1, 100))) == 1
    assert engine_environment(BASE, lease("cpu", Share("c", 1, 250)))["OMP_NUM_THREADS"] == "3"


def test_an_ingest_inherits_all_but_what_the_agent_alone_reads() -> None:
    found = ingest_environment(BASE)
    assert found["HEADRACE_REDIS__URL"] == BASE["HEADRACE_REDIS__URL"]
    assert "HEADRACE_AGENT__CORES" not in found
    assert (found["OMP_NUM_THREADS"], found["CUDA_VISIBLE_DEVICES"]) == ("1", "")
