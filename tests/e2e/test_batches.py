"""How requests stand in batches, seen by real graphs: padded, masked, ragged, in parts, and as the knobs say meanwhile.

The graphs answer with what they were given, too, so that a test sees what its requests were computed with; every value
is held against the graph run directly on that request alone.
"""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from benchmarks.harness import control, wait_for_workers
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.errors import InvalidRequest
from contracts.messages import Response
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, DeviceSpec, Knobs, TopicSpec, parse_model
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.helpers import wait_until

onnx: Any = pytest.importorskip("onnx", reason="the extra 'dev' is not installed")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
BATCHES, LENGTHS = (1, 2, 4, 8), (4, 8)

PADDED = """
inputs:
  - {name: x, datatype: FP32, shape: [-1, -1]}
  - {name: mask, datatype: FP32, shape: [-1, -1]}
outputs:
  - {name: y, datatype: FP32, shape: [-1, -1]}
  - {name: total, datatype: FP32, shape: [-1, 1]}
  - {name: seen, datatype: INT64, shape: [-1, 2]}
batching: {max_batch_size: 8, padding: {batch: true, length_buckets: [4, 8], mask: mask, value: 100}}
"""
RAGGED = """
inputs:
  - {name: x, datatype: FP32, shape: [-1, 1]}
  - {name: offsets, datatype: INT64, shape: [-1]}
outputs:
  - {name: sum, datatype: FP32, shape: [-1, 1]}
  - {name: seen, datatype: INT64, shape: [-1, 1]}
batching: {max_batch_size: 32, padding: {offsets: offsets}}
"""
WIDE = """
inputs: [{name: x, datatype: FP32, shape: [-1, 2]}]
outputs:
  - {name: y, datatype: FP32, shape: [-1, 2]}
  - {name: seen, datatype: INT64, shape: [-1, 2]}
batching: {max_batch_size: 16, max_request_rows: 64}
"""

INVARIANT = """
inputs: [{name: x, datatype: FP32, shape: [-1, 64, 8]}]
outputs:
  - {name: sum, datatype: FP32, shape: [-1, 8]}
  - {name: seen, datatype: INT64, shape: [-1, 3]}
batching: {max_batch_size: 8, max_request_rows: 24, batch_invariant: true}
"""


def constant(name: str, values: Any) -> Any:
    return onnx.numpy_helper.from_array(np.array(values), name)


def tensor(name: str, kind: int, *shape: str | int) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def padded_graph() -> Any:
    """Doubles and offsets under the mask, sums up whole rows, and says which shape it was given."""
    node = onnx.helper.make_node
    nodes = [
        node("Add", ["x", "x"], ["twice"]),
        node("Add", ["twice", "mask"], ["y"]),
        node("Mul", ["x", "mask"], ["real"]),
        node("ReduceSum", ["real", "one"], ["total"], keepdims=1),
        node("Shape", ["x"], ["dims"]),
        node("Shape", ["x"], ["rows"], end=1),
        node("Concat", ["rows", "one"], ["column"], axis=0),
        node("Expand", ["unit", "column"], ["ones"]),
        node("Mul", ["ones", "dims"], ["seen"]),
    ]
    inputs = [tensor("x", FLOAT, "n", "length"), tensor("mask", FLOAT, "n", "length")]
    outputs = [tensor("y", FLOAT, "n", "length"), tensor("total", FLOAT, "n", 1), tensor("seen", INT64, "n", 2)]
    constants = [constant("one", [1]), constant("unit", [[1]])]
    return onnx.helper.make_graph(nodes, "padded", inputs, outputs, constants)


def ragged_graph() -> Any:
    """Gives each row the sum of its own request, and the number of requests in the batch."""
    node = onnx.helper.make_node
    nodes = [
        node("Shape", ["x"], ["rows"], end=1),
        node("Squeeze", ["rows", "first"], ["count"]),
        node("Range", ["zero", "count", "step"], ["numbers"]),
        node("Unsqueeze", ["numbers", "one"], ["row"]),
        node("Slice", ["offsets", "first", "last"], ["starts"]),
        node("Slice", ["offsets", "one", "beyond"], ["ends"]),
        node("GreaterOrEqual", ["row", "starts"], ["behind"]),
        node("Less", ["row", "ends"], ["before"]),
        node("And", ["behind", "before"], ["mine"]),
        node("Cast", ["mine"], ["member"], to=FLOAT),
        node("Transpose", ["member"], ["members"], perm=[1, 0]),
        node("MatMul", ["members", "x"], ["sums"]),
        node("MatMul", ["member", "sums"], ["sum"]),
        node("Shape", ["starts"], ["requests"]),
        node("Concat", ["rows", "one"], ["column"], axis=0),
        node("Expand", ["requests", "column"], ["seen"]),
    ]
    inputs = [tensor("x", FLOAT, "n", 1), tensor("offsets", INT64, "bounds")]
    outputs = [tensor("sum", FLOAT, "n", 1), tensor("seen", INT64, "n", 1)]
    constants = [constant(name, [value]) for name, value in (("first", 0), ("one", 1), ("last", -1), ("beyond", 99))]
    constants += [constant("zero", 0), constant("step", 1)]
    return onnx.helper.make_graph(nodes, "ragged", inputs, outputs, constants)


def wide_graph() -> Any:
    """Three times a row and one, and which shape it was given."""
    node = onnx.helper.make_node
    nodes = [
        node("Mul", ["x", "three"], ["thrice"]),
        node("Add", ["thrice", "unit"], ["y"]),
        node("Shape", ["x"], ["dims"]),
        node("Shape", ["x"], ["rows"], end=1),
        node("Concat", ["rows", "one"], ["column"], axis=0),
        node("Expand", ["ones", "column"], ["full"]),
        node("Mul", ["full", "dims"], ["seen"]),
    ]
    outputs = [tensor("y", FLOAT, "n", 2), tensor("seen", INT64, "n", 2)]
    constants = [constant("three", np.float32(3)), constant("unit", np.float32(1))]
    constants += [constant("one", [1]), constant("ones", [[1]])]
    return onnx.helper.make_graph(nodes, "wide", [tensor("x", FLOAT, "n", 2)], outputs, constants)


def invariant_graph() -> Any:
    """Sums over a middle axis, which ONNX Runtime does in another order when the first has one row only."""
    node = onnx.helper.make_node
    nodes = [
        node("ReduceSum", ["x", "one"], ["sum"], keepdims=0),
        node("Shape", ["x"], ["dims"]),
        node("Shape", ["x"], ["rows"], end=1),
        node("Concat", ["rows", "one"], ["column"], axis=0),
        node("Expand", ["unit", "column"], ["ones"]),
        node("Mul", ["ones", "dims"], ["seen"]),
    ]
    outputs = [tensor("sum", FLOAT, "n", 8), tensor("seen", INT64, "n", 3)]
    constants = [constant("one", [1]), constant("unit", [[1]])]
    return onnx.helper.make_graph(nodes, "invariant", [tensor("x", FLOAT, "n", 64, 8)], outputs, constants)


def write_model(folder: Path, name: str, yaml: str, graph: Any) -> RegisteredModel:
    """A model folder with a graph made here."""
    folder.mkdir(parents=True)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    text = f"name: {name}\nversion: 1\nbackend: onnx\n{textwrap.dedent(yaml)}"
    return RegisteredModel(spec=parse_model(text, name), uri=str(folder))


@dataclass
class Batches:
    """The running stack, and the same graphs without it."""

    client: InferenceClient
    registry: Registry
    direct: dict[str, Any]

    def run(self, model: str, **inputs: Array) -> dict[str, Array]:
        """What the graph says to these inputs alone."""
        session = self.direct[model]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    async def ask(self, model: str, requests: Sequence[Array]) -> list[Response]:
        """Send requests all at once."""
        return await asyncio.gather(*(self.client.infer(f"{model}@1", {"x": x}) for x in requests))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def batches(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Batches]:
    """One worker whose engine holds all the graphs."""
    root = tmp_path_factory.mktemp("batches")
    graphs = {"padded": (PADDED, padded_graph()), "ragged": (RAGGED, ragged_graph()), "wide": (WIDE, wide_graph())}
    graphs["invariant"] = (INVARIANT, invariant_graph())
    models = [write_model(root / name / "1", name, yaml, graph) for name, (yaml, graph) in graphs.items()]
    direct = {model.key.model: onnxruntime.InferenceSession(f"{model.uri}/model.onnx") for model in models}
    keys = [model.key for model in models]
    deployment = DeploymentSpec(
        model=keys[0].model,
        version=1,
        models=tuple(map(str, keys)),
        device=DeviceSpec(kind="cpu", compute=50, memory_mib=128),
        topic=TopicSpec(partitions=1),  # so that what is sent at once arrives at once
    )
    async with EmbeddedStack(root / "stack", kafka="embedded") as stack, control(stack) as (registry, leases):
        await registry.put_models(models)
        await registry.put_deployment(deployment)
        await wait_for_workers(leases, keys[0], 1)
        async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="batches") as client:
            yield Batches(client, registry, direct)


def matrix(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


async def test_rows_and_lengths_are_padded_and_masked_and_nobody_sees_it(batches: Batches) -> None:
    shapes = [(1 + number % 3, 1 + number % 8) for number in range(60)]
    requests = [matrix(number, *shape) for number, shape in enumerate(shapes)]
    answers = await batches.ask("padded", requests)
    seen = []
    for x, answer in zip(requests, answers, strict=True):
        alone = batches.run("padded", x=x, mask=np.ones_like(x))
        np.testing.assert_allclose(answer["y"].to_numpy(), alone["y"], rtol=1e-6)
        np.testing.assert_allclose(answer["total"].to_numpy(), alone["total"], rtol=1e-5, atol=1e-6)
        ((rows, length),) = np.unique(answer["seen"].to_numpy(), axis=0)
        assert rows in BATCHES
        assert length == next(bucket for bucket in LENGTHS if bucket >= x.shape[1])
        seen.append((rows - x.shape[0], length - x.shape[1]))
    assert any(rows for rows, _ in seen), "no request ever had company or padding"
    assert any(length for _, length in seen)


async def test_rows_longer_than_every_bucket_are_left_as_they_are(batches: Batches) -> None:
    x = matrix(0, 2, 11)
    (answer,) = await batches.ask("padded", [x])
    np.testing.assert_allclose(answer["y"].to_numpy(), batches.run("padded", x=x, mask=np.ones_like(x))["y"], rtol=1e-6)
    assert answer["seen"].to_numpy().tolist() == [[2, 11]] * 2


async def test_ragged_batches_carry_where_each_request_begins(batches: Batches) -> None:
    requests = [matrix(number, 1 + number % 7, 1) for number in range(60)]
    answers = await batches.ask("ragged", requests)
    for x, answer in zip(requests, answers, strict=True):
        alone = batches.run("ragged", x=x, offsets=np.array([0, len(x)]))
        np.testing.assert_allclose(answer["sum"].to_numpy(), alone["sum"], rtol=1e-4, atol=1e-5)
    assert max(answer["seen"].to_numpy().max() for answer in answers) > 1, "no batch had two requests"


async def test_a_request_larger_than_a_batch_runs_in_parts_and_is_answered_whole(batches: Batches) -> None:
    requests = [matrix(rows, rows, 2) for rows in (1, 16, 17, 50, 64)]
    answers = await batches.ask("wide", requests)
    for x, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer["y"].to_numpy(), batches.run("wide", x=x)["y"], rtol=1e-6)
        assert answer["seen"].to_numpy()[:, 0].max() <= 16
    with pytest.raises(InvalidRequest, match="64"):
        await batches.ask("wide", [matrix(0, 65, 2)])


async def test_a_batch_invariant_model_gives_a_row_the_same_bits_alone_and_in_any_company(batches: Batches) -> None:
    x = matrix(1, 24, 64, 8)
    alone = [(await batches.ask("invariant", [row[None]]))[0] for row in x]
    together = await batches.ask("invariant", [x[start : start + 1 + start % 3] for start in range(21)])
    (whole,) = await batches.ask("invariant", [x])

    expected = np.concatenate([answer["sum"].to_numpy() for answer in alone])
    assert np.array_equal(whole["sum"].to_numpy(), expected)
    for start, answer in enumerate(together):
        assert np.array_equal(answer["sum"].to_numpy(), expected[start : start + 1 + start % 3])
    for answer in (*alone, *together, whole):
        assert np.unique(answer["seen"].to_numpy()[:, 0]).tolist() == [8]
    np.testing.assert_allclose(expected, x.sum(1), rtol=1e-4, atol=1e-5)


async def test_a_lower_max_batch_size_by_hand_does_not_change_the_size_of_invariant_batches(batches: Batches) -> None:
    key = ModelVersion("invariant", 1)
    x = matrix(2, 24, 64, 8)
    before = (await batches.ask("invariant", [x]))[0]

    async def most_rows() -> int:
        answers = await batches.ask("invariant", [row[None] for row in x])
        return max(answer.receipt.batch_rows for answer in answers)

    async def is_followed() -> bool:
        return await most_rows() <= 2

    await batches.registry.put_knobs(key, Knobs(max_batch_size=2))
    await wait_until(is_followed, "the knob was not followed")
    after = (await batches.ask("invariant", [x]))[0]
    await batches.registry.put_knobs(key, Knobs())

    assert np.array_equal(before["sum"].to_numpy(), after["sum"].to_numpy())
    assert np.unique(after["seen"].to_numpy()[:, 0]).tolist() == [8]


async def test_a_lower_max_batch_size_holds_within_a_second_while_requests_come_in(batches: Batches) -> None:
    async def largest() -> int:
        """The largest batch that a burst met, of requests that are split and of such that are not."""
        requests = [matrix(number, rows, 2) for number, rows in enumerate([1] * 40 + [7, 33])]
        answers = await batches.ask("wide", requests)
        for x, answer in zip(requests, answers, strict=True):
            np.testing.assert_allclose(answer["y"].to_numpy(), batches.run("wide", x=x)["y"], rtol=1e-6)
        return int(max(answer["seen"].to_numpy()[:, 0].max() for answer in answers))

    async def is_at_most(rows: int) -> bool:
        return await largest() <= rows

    async def is_at_least(rows: int) -> bool:
        return await largest() >= rows

    key = ModelVersion("wide", 1)
    assert 3 < await largest() <= 16
    await batches.registry.put_knobs(key, Knobs(max_batch_size=3))
    await wait_until(lambda: is_at_most(3), "the knob was not followed")
    assert await largest() <= 3
    await batches.registry.put_knobs(key, Knobs())
    await wait_until(lambda: is_at_least(4), "the knob was not taken back")
