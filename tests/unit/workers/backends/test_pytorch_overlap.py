"""The torch backend behind a pipeline: real tensors on the CPU, and the device itself where there is one."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import ModelLoadError
from contracts.specs import ModelSpec
from workers.backends.base import Arrays, ModelContext

pytest.importorskip("torch", reason="the extra 'torch' is not installed")
from workers.backends.pytorch import TorchBackend
from workers.backends.pytorch.cuda import CudaDoor, Tensors

torch: Any = pytest.importorskip("torch")


class Affine(torch.nn.Module):  # type: ignore[misc]  # torch is optional here
    def forward(self, a: Any, b: Any) -> Any:
        return a + b.to(a.dtype), 2 * b


class HostDoor(Tensors):
    """The CPU in place of a device: everything is done at once, and a graph is the program over fixed tensors."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.replays = 0

    def capture(self, program: Any, tensors: Sequence[Any]) -> tuple[Any, Any]:
        results = self.call(program, tensors)

        def run() -> None:
            for result, value in zip(results, self.call(program, tensors), strict=True):
                self.overwrite(result, value)

        return run, results

    def replay(self, graph: Any) -> None:
        self.replays += 1
        graph()

    def mark(self, stream: str) -> None:
        pass

    def hold(self, stream: str, mark: None) -> None:
        pass

    def wait(self, mark: None) -> None:
        pass

    def settle(self) -> None:
        pass

    def pin(self, memory: memoryview) -> bool:
        return True

    def unpin(self) -> None:
        pass


def context(folder: Path, datatype: str = "FP32", **fields: Any) -> ModelContext:
    sides = {
        "inputs": [
            {"name": "a", "datatype": datatype, "shape": [-1, 3]},
            {"name": "b", "datatype": "INT64", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "sum", "datatype": datatype, "shape": [-1, 3]},
            {"name": "twice", "datatype": "INT64", "shape": [-1, 1]},
        ],
    }
    spec = ModelSpec.model_validate({"name": "affine", "version": 1, "backend": "torch"} | sides)
    dtype = torch.bfloat16 if datatype == "BF16" else torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 1, dtype=torch.int64))
        torch.jit.save(torch.jit.trace(Affine(), example), folder / "model.pt")
    return ModelContext(spec, folder, **fields)


def batch(rows: int, seed: int = 0) -> Arrays:
    dice = np.random.default_rng(seed)
    return {
        "a": dice.standard_normal((rows, 3)).astype(np.float32),
        "b": dice.integers(-99, 99, (rows, 1)),
    }


def check(backend: TorchBackend, inputs: Arrays) -> None:
    outputs = backend.infer(inputs, len(inputs["a"]), {})
    np.testing.assert_array_equal(outputs["sum"], inputs["a"] + inputs["b"].astype(np.float32))
    np.testing.assert_array_equal(outputs["twice"], 2 * inputs["b"])


@pytest.fixture
def overlapped(tmp_path: Path) -> tuple[TorchBackend, HostDoor]:
    backend, door = TorchBackend(), HostDoor()
    backend.load(context(tmp_path))
    backend.overlap(door)
    return backend, door


def test_on_the_cpu_nothing_overlaps(tmp_path: Path) -> None:
    backend = TorchBackend()
    backend.load(context(tmp_path))
    assert not backend.is_pipelined
    assert not backend.pin(memoryview(bytearray(8)))
    check(backend, batch(3))


def test_batches_through_the_pipeline_have_the_programs_answers(overlapped: tuple[TorchBackend, HostDoor]) -> None:
    backend, door = overlapped
    graphs = backend.capture([batch(rows) for rows in (1, 4)])
    assert (graphs.captured, graphs.failed) == ((4, 1), ())
    for seed, rows in enumerate((4, 3, 1, 4, 0)):
        check(backend, batch(rows, seed))
    assert door.replays == 3
    backend.close()
    assert not backend.is_pipelined


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
def test_memory_that_a_kernel_or_a_library_asks_for_may_suffice_for_less(tmp_path: Path, text: str) -> None:
    class Full(HostDoor):
        def call(self, program: Any, tensors: Sequence[Any]) -> Any:
            raise RuntimeError(text)

    backend = TorchBackend()
    backend.load(context(tmp_path))
    backend.overlap(Full())
    with pytest.raises(MemoryError, match=text):
        backend.launch(batch(4), 4, {})


def test_brain_floats_keep_their_patterns_through_the_pipeline(tmp_path: Path) -> None:
    backend = TorchBackend()
    backend.load(context(tmp_path, "BF16"))
    backend.overlap(HostDoor())
    one, three = 0x3F80, 0x4040
    outputs = backend.infer({"a": np.full((2, 3), one, np.uint16), "b": np.full((2, 1), 2)}, 2, {})
    assert outputs["sum"].dtype == np.uint16
    assert outputs["sum"].tolist() == [[three] * 3] * 2


def test_a_gpu_lease_that_torch_cannot_use_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this torch can use its GPU")
    with pytest.raises(ModelLoadError, match=r"affine@1: the lease has a GPU, but torch .* cannot use it"):
        TorchBackend().load(context(tmp_path, device="cuda:0"))


@pytest.mark.gpu
def test_on_a_gpu_batches_in_flight_have_the_programs_answers(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    backend = TorchBackend()
    backend.load(context(tmp_path, device="cuda:0"))
    memory = mmap.mmap(-1, 1 << 16)
    assert isinstance(backend._pipeline._door, CudaDoor)  # type: ignore[union-attr]  # loaded on a GPU
    assert backend.pin(memoryview(memory))
    assert backend.capture([batch(rows) for rows in (8, 64)]).failed == ()
    for seed in range(200):
        pair = [batch(rows, seed) for rows in (64, 8 if seed % 2 else 7)]
        flights = [backend.launch(inputs, len(inputs["a"]), {}) for inputs in pair]
        intos = [{name: np.full(a.shape, 77, a.dtype) for name, a in flight.outputs.items()} for flight in flights]
        for flight, into in zip(flights, intos, strict=True):
            flight.fetch(into)
        for flight, into, inputs in zip(flights, intos, pair, strict=True):
            flight.wait()
            np.testing.assert_array_equal(into["twice"], 2 * inputs["b"])
            np.testing.assert_array_equal(into["sum"], inputs["a"] + inputs["b"].astype(np.float32))
    backend.close()
