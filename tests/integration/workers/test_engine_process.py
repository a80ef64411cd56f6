from __future__ import annotations

import os
import py_compile
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.artefacts import digest_folder
from tests.engine_process import MODELS, TOKEN, BatchFailed, EngineProcess, python_model, rows_of
from tests.helpers import wait_until_sync
from workers.engine.__main__ import ENDED, NO_DEVICE, NO_INGEST, NOT_LOADED, connect
from workers.link import Done, Failed, LoadFailed, Ready, Stop

MOODY = """
import numpy as np

class Model:
    def infer(self, inputs, parameters):
        match parameters.get("mood"):
            case "raise":
                raise ValueError(f"bad row: {inputs['x'].tolist()}")
            case "exit":
                raise SystemExit(9)
            case "memory":
                np.empty((1 << 60,), np.uint8)
            case "print":
                print("a line by the handler")
            case "short":
                return {"y": inputs["x"][1:]}
            case "scribble":
                inputs["x"] *= 2
        return {"y": inputs["x"]}
"""

# Answers with what the process can tell about itself, as lines of text.
PROBE = """
import os, resource, sys
import numpy as np
from pathlib import Path

class Model:
    def infer(self, inputs):
        facts = [
            "modules " + " ".join(sys.modules),
            "path " + " ".join(sys.path),
            "environment " + " ".join(f"{name}={value}" for name, value in os.environ.items()),
            "status " + " ".join(Path("/proc/self/status").read_text().split()),
            "core {} {}".format(*resource.getrlimit(resource.RLIMIT_CORE)),
            "oom " + Path("/proc/self/oom_score_adj").read_text().strip(),
            "descriptors " + " ".join(sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                                             if os.path.lexists(f"/proc/self/fd/{fd}"))),
        ]
        return {"y": np.array([facts + [inputs["x"][0, 0].decode()]] * len(inputs["x"]), dtype=object)}
"""

TEXT = {
    "inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1, -1]}],
    "slot_mib": 1,
}
ROWHASH, MOODY_INDEX, PROBE_INDEX = 0, 1, 2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One engine with three models; what the tests do to it, it must survive."""
    folder = tmp_path_factory.mktemp("models")
    moody = python_model(folder / "moody" / "1", MOODY, name="moody")
    probe = python_model(folder / "probe" / "1", PROBE, name="probe", **TEXT)
    with EngineProcess(MODELS / "rowhash" / "1", moody, probe, threads=3) as engine:
        assert isinstance(engine.start(), Ready)
        yield engine
        engine.send(Stop())
        assert engine.wait() == ENDED


def facts_of(engine: EngineProcess) -> dict[str, str]:
    answer = engine.infer({"x": np.array([["ping"]])}, model=PROBE_INDEX)["y"]
    lines = [line.decode() for line in answer[0]]
    assert lines.pop() == "ping"
    return dict(line.split(" ", 1) for line in lines)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_each_row_is_answered_with_its_own_hash(engine: EngineProcess, rows: int) -> None:
    x = np.random.default_rng(rows).random((rows, 64), np.float32)
    together = engine.infer({"row": x})["hash"]
    assert together.shape == (rows, 1)
    assert together.dtype == np.uint64
    assert len(set(together.ravel().tolist())) == rows
    alone = [engine.infer({"row": x[row : row + 1]})["hash"].item() for row in range(rows)]
    assert together.ravel().tolist() == alone


def test_batches_sent_ahead_are_answered_in_order_each_from_its_slot(engine: EngineProcess) -> None:
    x = np.random.default_rng(7).random((3, 4, 64), np.float32)
    want = [engine.infer({"row": rows})["hash"].tolist() for rows in x]
    sent = [engine.submit({"row": rows}, slot=slot) for slot, rows in enumerate(x)]
    answers = [engine.receive() for _ in sent]
    for batch, answer, hashes in zip(sent, answers, want, strict=True):
        assert isinstance(answer, Done)
        assert (answer.slot, answer.sequence) == (batch.slot, batch.sequence)
        assert engine.outputs(answer)["hash"].tolist() == hashes


@pytest.mark.parametrize(
    ("mood", "kind", "words"),
    [
        ("raise", "error", "ValueError: bad row"),
        ("exit", "error", "SystemExit: 9"),
        ("memory", "memory", "Unable to allocate 1.00 EiB"),
        ("short", "output", "output 'y' has the shape [1, 2] for a batch of 2 rows"),
    ],
)
def test_a_batch_that_fails_leaves_the_engine_as_it_was(
    engine: EngineProcess, mood: str, kind: str, words: str
) -> None:
    with pytest.raises(BatchFailed) as caught:
        engine.infer({"x": rows_of(2)}, model=MOODY_INDEX, parameters={"mood": mood})
    assert caught.value.args[0] == kind
    assert words in caught.value.args[1]
    assert engine.infer({"x": rows_of(2)}, model=MOODY_INDEX)["y"].tolist() == rows_of(2).tolist()


def test_a_model_may_overwrite_its_inputs(engine: EngineProcess) -> None:
    outputs = engine.infer({"x": rows_of(2)}, model=MOODY_INDEX, parameters={"mood": "scribble"})
    assert outputs["y"].tolist() == (rows_of(2) * 2).tolist()


def test_the_log_says_where_a_model_failed_and_never_its_input(engine: EngineProcess) -> None:
    secret = np.full((1, 2), 31337.0, np.float32)
    with pytest.raises(BatchFailed, match="31337"):  # the caller's own values may go back to the caller
        engine.infer({"x": secret}, model=MOODY_INDEX, parameters={"mood": "raise"})
    log = engine.log.read_text()
    assert "a batch of moody@1" in log
    assert "raise ValueError(f" in log
    assert "31337" not in log


def test_an_engine_measures_batches_before_the_first_request(tmp_path: Path) -> None:
    slow = "import time\nclass Model:\n    def infer(self, inputs):\n        time.sleep(0.002 * len(inputs['x']))\n"
    slow += "        return {'y': inputs['x']}\n"
    folders = python_model(tmp_path / "slow" / "1", slow, name="slow"), MODELS / "rowhash" / "1"
    with EngineProcess(*folders) as engine:
        ready = engine.start(timed=(1, 4))
        assert isinstance(ready, Ready)
        slow_ones, quick_ones = ({each.rows: min(each.seconds) for each in timings} for timings in ready.timings)
        assert slow_ones.keys() == quick_ones.keys() == {1, 4}
        assert slow_ones[1] >= 0.002
        assert slow_ones[4] >= 0.008
        assert engine.infer({"x": rows_of(2)})["y"].tolist() == rows_of(2).tolist()


def test_what_a_handler_prints_is_in_the_log_at_once(engine: EngineProcess) -> None:
    engine.infer({"x": rows_of(1)}, model=MOODY_INDEX, parameters={"mood": "print"})
    assert "a line by the handler\n" in engine.log.read_text()


def test_an_interrupt_from_the_terminal_is_left_to_ingest(engine: EngineProcess) -> None:
    engine.process.send_signal(signal.SIGINT)
    assert engine.infer({"x": rows_of(1)}, model=MOODY_INDEX)["y"].tolist() == [[0.0, 1.0]]


def test_the_engine_holds_no_client_of_kafka_or_redis(engine: EngineProcess) -> None:
    modules = facts_of(engine)["modules"].split()
    assert "workers.engine.engine" in modules
    roots = {name.partition(".")[0] for name in modules}
    assert not roots & {
        "aiokafka",
        "kafka",
        "redis",
        "valkey",
        "kio",
        "confluent_kafka",
        "prometheus_client",
        "asyncio",
    }
    assert not {name for name in modules if name.startswith(("contracts.adapters", "workers.ingest", "workers.agent"))}


def test_models_do_not_come_onto_the_module_search_path(engine: EngineProcess) -> None:
    assert "moody" not in facts_of(engine)["path"]


def test_the_engine_gives_up_what_it_does_not_need(engine: EngineProcess) -> None:
    facts = facts_of(engine)
    assert "NoNewPrivs: 1 " in facts["status"]
    assert facts["core"] == "0 0"
    assert facts["oom"] == "500"


def test_nothing_is_open_but_the_log_the_link_and_the_slots(engine: EngineProcess) -> None:
    kinds = {name.split(":")[0] for name in facts_of(engine)["descriptors"].split()}
    assert kinds <= {"/dev/null", str(engine.log), "socket", str(engine.slots.path)}


def test_libraries_are_told_the_leases_threads(engine: EngineProcess) -> None:
    environment = facts_of(engine)["environment"].split()
    assert {"OMP_NUM_THREADS=3", "OPENBLAS_NUM_THREADS=3", "MKL_NUM_THREADS=3"} <= set(environment)


def test_a_model_that_cannot_be_loaded_is_reported_and_ends_the_engine(tmp_path: Path) -> None:
    folder = python_model(tmp_path, "class Model:\n    def load(self, context):\n        open('/no/weights')\n")
    with EngineProcess(folder) as engine:
        answer = engine.start()
        assert isinstance(answer, LoadFailed)
        assert "made-up@1: Model could not be loaded: FileNotFoundError" in answer.message
        assert "model.py, line 3" in answer.message
        assert engine.receive() is None
        assert engine.wait() == NOT_LOADED
        assert "Traceback" in engine.log.read_text()


def test_slots_that_are_not_there_are_reported(tmp_path: Path) -> None:
    with EngineProcess(python_model(tmp_path, "")) as engine:
        engine.slots.path.unlink()
        answer = engine.start()
        assert isinstance(answer, LoadFailed)
        assert "slots" in answer.message
        assert engine.wait() == NOT_LOADED


def test_the_engine_introduces_itself_and_ends_when_ingest_does_not_go_on(tmp_path: Path) -> None:
    with EngineProcess(python_model(tmp_path, "")) as engine:
        hello = engine.spawn()
        assert (hello.token, hello.pid) == (TOKEN, engine.process.pid)
        engine.hang_up()
        assert engine.wait() == ENDED


def test_a_peer_that_speaks_nonsense_ends_the_engine(tmp_path: Path) -> None:
    with EngineProcess(python_model(tmp_path, "")) as engine:
        engine.spawn()
        engine.send_bytes(struct.pack("<I", 2**31))
        assert engine.wait() == NO_INGEST
        assert "on the engine link" in engine.log.read_text()


PATIENT = """
import time
from pathlib import Path

class Model:
    def load(self, context):
        self.folder = context.folder
    def infer(self, inputs, parameters):
        if parameters:
            (self.folder / "begun").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.002)
        return {"y": inputs["x"]}
    def close(self):
        (self.folder / "closed").touch()
"""


def test_a_terminated_engine_finishes_its_running_batch_first(tmp_path: Path) -> None:
    with EngineProcess(python_model(tmp_path, PATIENT)) as engine:
        assert isinstance(engine.start(), Ready)
        running = engine.submit({"x": rows_of(2)}, slot=0, parameters={"wait": True})
        wait_until_sync((tmp_path / "begun").exists)
        engine.submit({"x": rows_of(2)}, slot=1)
        engine.process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        answer = engine.receive()
        assert isinstance(answer, Done)
        assert answer.sequence == running.sequence
        assert engine.outputs(answer)["y"].tolist() == rows_of(2).tolist()
        assert engine.receive() is None  # the batch behind it is left to the next engine
        assert engine.wait() == ENDED
        assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("how", ["stop", "hang up", "terminate"])
def test_an_idle_engine_ends_at_once(how: str, tmp_path: Path) -> None:
    with EngineProcess(python_model(tmp_path, PATIENT)) as engine:
        assert isinstance(engine.start(), Ready)
        match how:
            case "stop":
                engine.send(Stop())
            case "hang up":
                engine.hang_up()
            case "terminate":
                engine.process.send_signal(signal.SIGTERM)
        assert engine.wait() == ENDED
        assert (tmp_path / "closed").exists()


def test_an_engine_that_is_killed_ends_the_link(tmp_path: Path) -> None:
    with EngineProcess(python_model(tmp_path, PATIENT)) as engine:
        assert isinstance(engine.start(), Ready)
        engine.submit({"x": rows_of(1)}, parameters={"wait": True})
        wait_until_sync((tmp_path / "begun").exists)
        engine.process.kill()
        assert engine.receive() is None


def test_a_respawned_engine_serves_from_the_same_slots(tmp_path: Path) -> None:
    with EngineProcess(python_model(tmp_path, PATIENT)) as engine:
        for _ in range(2):
            assert isinstance(engine.start(), Ready)
            assert engine.infer({"x": rows_of(2)})["y"].tolist() == rows_of(2).tolist()
            engine.process.kill()
            engine.wait()
            engine.hang_up()


def test_the_engine_waits_for_ingest_to_open_its_socket(tmp_path: Path) -> None:
    path = Path(os.path.relpath(tmp_path / "late.sock"))  # relative: pytest's folders make long paths
    connected: list[socket.socket] = []
    waiting = threading.Thread(target=lambda: connected.append(connect(path, 10)))
    waiting.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        waiting.join(10)
        assert connected
        connected[0].close()


def test_an_ingest_that_never_comes_is_an_error_after_the_wait(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(Path(os.path.relpath(tmp_path / "never.sock")), 0)


@pytest.mark.parametrize("version", [1, 2])
def test_the_digit_models_are_served(version: int) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    with EngineProcess(MODELS / "digits" / str(version)) as engine:
        ready = engine.start()
        assert isinstance(ready, Ready)
        assert ready.device == "cpu"
        scores: Any = engine.infer({"image": np.zeros((5, 64), np.float32)})["scores"]
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
        answer = engine.submit({"image": np.zeros((5, 63), np.float32)})
        failed = engine.receive()
        assert isinstance(failed, Failed)
        assert (failed.sequence, failed.kind) == (answer.sequence, "error")
        assert "InvalidArgument" in failed.message


def test_files_other_than_those_registered_are_not_loaded(tmp_path: Path) -> None:
    folder = python_model(tmp_path / "1", MOODY)
    digest = digest_folder(folder)
    with EngineProcess(folder, digest=digest) as engine:
        assert isinstance(engine.start(), Ready)
    (folder / "model.py").write_text(MOODY + "\n# one line more\n")
    with EngineProcess(folder, digest=digest) as engine:
        answer = engine.start()
        assert isinstance(answer, LoadFailed)
        assert "are not those that were registered" in answer.message
        assert engine.wait() == NOT_LOADED


def test_bytecode_that_was_left_beside_the_sources_is_not_run(tmp_path: Path) -> None:
    folder = python_model(tmp_path / "1", MOODY)
    source = folder / "model.py"
    stat = source.stat()
    source.write_text("raise SystemExit('planted')".ljust(stat.st_size))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    py_compile.compile(str(source))  # as if by the source that is there: same size, same time
    source.write_text(MOODY)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with EngineProcess(folder, digest=digest_folder(folder)) as engine:
        assert isinstance(engine.start(), Ready)


def test_code_that_the_deployment_does_not_allow_is_not_loaded(tmp_path: Path) -> None:
    folder = python_model(tmp_path / "1", "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n" + MOODY)
    with EngineProcess(folder, allow_code=False) as engine:
        answer = engine.start()
        assert isinstance(answer, LoadFailed)
        assert "allow_code: true" in answer.message
        assert engine.wait() == NOT_LOADED
    assert not (folder / "ran").exists()


def test_an_engine_that_lost_its_device_ends_and_answers_nothing_in_the_faults_place(tmp_path: Path) -> None:
    code = """
from workers.backends.device_faults import DeviceLost

class Model:
    def infer(self, inputs):
        if inputs["x"].any():
            raise DeviceLost("CUDA error: device-side assert triggered")
        return {"y": inputs["x"]}
"""
    with EngineProcess(python_model(tmp_path / "1", code)) as engine:
        assert isinstance(engine.start(), Ready)
        engine.submit({"x": rows_of(2)})
        assert engine.receive() is None
        assert engine.wait() == NO_DEVICE
        assert "the device is lost to this process: CUDA error: device-side assert" in engine.log.read_text()
