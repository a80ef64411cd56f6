"""Plays the ingest process to a real engine process, so that tests and benchmarks can drive it over its real link."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from contracts.messages import Parameters
from contracts.specs import ModelSpec, parse_model
from contracts.tensors import Tensor
from workers.backends.base import Arrays
from workers.engine.exchange import read_inputs
from workers.link import (
    Batch,
    Done,
    Failed,
    FrameDecoder,
    Hello,
    Load,
    LoadFailed,
    Message,
    ModelToLoad,
    Ready,
    Region,
    encode,
)
from workers.slots import SLOT_COUNT, SlotFile, align, region_bytes

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "deploy" / "fleet" / "models"
TOKEN = "7-0badcafe"


def spec_in(folder: Path) -> ModelSpec:
    path = folder / "model.yaml"
    return parse_model(path.read_text(), str(path))


class BatchFailed(Exception):
    """A batch that the engine answered with Failed: kind and message."""


class EngineProcess:
    """An engine process, the socket it connects to and the slots it reads."""

    def __init__(
        self,
        *folders: Path,
        threads: int = 1,
        environment: dict[str, str] | None = None,
        digest: str = "",
        allow_code: bool = True,
        patience: float = 20.0,
    ) -> None:
        self.specs = [spec_in(folder) for folder in folders]
        self._folders, self._threads = folders, threads
        self._digest, self._allow_code, self._patience = digest, allow_code, patience
        # Not the test's own folder: a socket's path may not be longer than 107 bytes.
        self._run_dir = tempfile.TemporaryDirectory(prefix="hr-")
        self.run_dir = Path(self._run_dir.name)
        self.log = self.run_dir / "lease.engine.log"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.run_dir / "lease.sock"))
        self._listener.listen(1)
        self._listener.settimeout(20)
        room = [max(region_bytes(spec, side(spec)) for spec in self.specs) for side in (_inputs, _outputs)]
        self.slots = SlotFile.create(self.run_dir / "slots", SLOT_COUNT, *room)
        self._environment = environment or {}
        self._sequence = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._messages: Iterator[Message] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._listener.close()
        self.slots.close()
        self._run_dir.cleanup()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def spawn(self) -> Hello:
        """Start the process; returns what it says first."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.run_dir),
            "PYTHONPATH": str(ROOT),
            **{name: value for name, value in os.environ.items() if name.startswith("PYTHON")},
            **self._environment,
        }
        arguments = ["--lease", "lease", "--token", TOKEN, "--run-dir", str(self.run_dir)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.engine", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.run_dir,
                env=environment,
            )
        self._link, _ = self._listener.accept()
        self._link.settimeout(self._patience)
        self._messages = self._received(self._link)
        hello = self.receive()
        assert isinstance(hello, Hello)
        return hello

    def start(self, timed: tuple[int, ...] = (), buckets: tuple[int, ...] = ()) -> Ready | LoadFailed:
        """Start the process and let it load, measure batches of the sizes in `timed`, make graphs for `buckets`."""
        self.spawn()
        self.send(
            Load(
                models=tuple(
                    ModelToLoad(
                        str(spec.key),
                        spec.model_dump_json(),
                        str(folder),
                        self._digest,
                        self._allow_code,
                        timed,
                        buckets,
                    )
                    for spec, folder in zip(self.specs, self._folders, strict=True)
                ),
                slots_path=str(self.slots.path),
                slot_count=self.slots.count,
                input_bytes=self.slots.input_bytes,
                output_bytes=self.slots.output_bytes,
                threads=self._threads,
                device="cpu",
            )
        )
        answer = self.receive()
        assert isinstance(answer, Ready | LoadFailed)
        return answer

    def send(self, message: Message) -> None:
        self.send_bytes(encode(message))

    def send_bytes(self, data: bytes) -> None:
        assert self._link is not None
        self._link.sendall(data)

    def receive(self) -> Message | None:
        """The next message; None at the end of the link."""
        return next(self._messages, None)

    def submit(self, inputs: Arrays, *, model: int = 0, slot: int = 0, parameters: Parameters | None = None) -> Batch:
        """Put inputs into a slot and send their batch."""
        self._sequence += 1
        rows = len(next(iter(inputs.values())))
        regions = fill(self.slots.input(slot), inputs)
        batch = Batch(slot, self._sequence, model, rows, regions, parameters or {})
        self.send(batch)
        return batch

    def infer(self, inputs: Arrays, *, model: int = 0, parameters: Parameters | None = None) -> Arrays:
        """Run a batch alone; BatchFailed when the engine says so."""
        batch = self.submit(inputs, model=model, parameters=parameters)
        answer = self.receive()
        if isinstance(answer, Failed):
            raise BatchFailed(answer.kind, answer.message)
        assert isinstance(answer, Done)
        assert (answer.slot, answer.sequence) == (batch.slot, batch.sequence)
        return self.outputs(answer)

    def outputs(self, answer: Done) -> Arrays:
        """Copies of the outputs that an answer points to."""
        arrays = read_inputs(self.slots.output(answer.slot), answer.outputs)
        return {name: array.copy() for name, array in arrays.items()}

    def hang_up(self) -> None:
        """End the link, as a dying ingest process does."""
        if self._link is not None:
            self._link.close()

    def wait(self) -> int:
        """The exit status, once the process has ended."""
        return self.process.wait(timeout=20)

    @staticmethod
    def _received(link: socket.socket) -> Iterator[Message]:
        decoder = FrameDecoder()
        with contextlib.suppress(ConnectionError):
            while data := link.recv(65536):
                yield from decoder.feed(data)


def fill(view: memoryview, inputs: Arrays) -> tuple[Region, ...]:
    """Lay arrays out in a slot's input region."""
    regions: list[Region] = []
    position = 0
    for name, array in inputs.items():
        tensor = Tensor.from_numpy(name, array)
        offset, size = align(position), tensor.data.nbytes
        view[offset : offset + size] = tensor.data
        regions.append(Region(name, tensor.datatype, tensor.shape, offset, size))
        position = offset + size
    return tuple(regions)


def python_model(folder: Path, code: str, **fields: Any) -> Path:
    """Write a version of a python-backend model; `fields` replace parts of its model.yaml."""
    spec = {
        "name": "made-up",
        "version": 1,
        "backend": "python",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        "batching": {"max_batch_size": 8},
    } | fields
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(ModelSpec.model_validate(spec).model_dump_json())
    (folder / "model.py").write_text(code)
    return folder


def rows_of(count: int, columns: int = 2) -> np.ndarray[Any, Any]:
    return np.arange(count * columns, dtype=np.float32).reshape(count, columns)


def _inputs(spec: ModelSpec) -> Sequence[Any]:
    return spec.inputs


def _outputs(spec: ModelSpec) -> Sequence[Any]:
    return spec.outputs
