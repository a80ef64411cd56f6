"""The examples as their READMEs say: `headrace apply` on a stack that `headrace up` started, and programs that ask it.

Chained and fused, every answer must be the one that the plan and the models give alone.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deploy.demo.images import load_digits
from headrace import InferenceClient
from tests.e2e.conftest import Terminal, Up
from tests.examples.kit import EXAMPLES, Arrays, LocalFleet, same, takes_minutes, texts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FEW_PAGES = ("page-06.png", "page-12.png", "page-14.png", "page-26.jpg")
_in_flight = 16


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A stack of its own, with a store for what does not fit into a record."""
    home = tmp_path_factory.mktemp("stack")
    terminal = Terminal(home)
    terminal.environment["HEADRACE_BLOBS__URL"] = (home / "blobs").as_uri()
    running = Up(terminal, "headrace up --kafka embedded")
    try:
        running.wait_ready()
        yield terminal
    finally:
        running.interrupt()


def apply(stack: Terminal, file: Path) -> None:
    done = stack.run(f"headrace apply -f {file} --prune --wait 90", seconds=120)
    assert done.returncode == 0, done.stderr


def ask(stack: Terminal, work: Callable[[InferenceClient], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `work` makes of a client of the stack."""
    found = json.loads(stack.run("headrace env --json").stdout)
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    for name, value in {**found, "HEADRACE_BLOBS__URL": stack.environment["HEADRACE_BLOBS__URL"]}.items():
        monkeypatch.setenv(name, value)

    async def asked() -> Any:
        async with InferenceClient() as client:
            return await work(client)

    return asyncio.run(asked())


async def answers(
    client: InferenceClient, name: str, inputs: Sequence[Arrays], parameters: Mapping[str, Any] | None = None
) -> tuple[list[Arrays], Counter[str]]:
    """The outputs for each of the inputs, some at a time, and how often each model's worker ended a job."""
    room = asyncio.Semaphore(_in_flight)
    last: Counter[str] = Counter()

    async def one(arrays: Arrays) -> Arrays:
        async with room:
            response = await client.infer(
                name, dict(arrays), parameters=dict(parameters) if parameters else None, ttl_seconds=120
            )
        last[response.receipt.worker.rpartition("-")[0]] += 1
        return {tensor.name: np.array(tensor.to_numpy()) for tensor in response.outputs}

    return list(await asyncio.gather(*map(one, inputs))), last


def test_digits_ensemble(stack: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(stack, EXAMPLES / "digits-ensemble" / "fleet.yaml")
    digits = load_digits()
    images, labels = digits.images[digits.held_out], digits.labels[digits.held_out]
    inputs = [{"image": image[None]} for image in images]

    async def work(client: InferenceClient) -> dict[str, tuple[list[Arrays], Counter[str]]]:
        names = ("digits-vote@1", "digits-vote@2", "digits-cascade@1", "digits-cascade@2", "digits@1", "digits@2")
        return {name: await answers(client, name, inputs) for name in names}

    found = ask(stack, work, monkeypatch)

    right = {name: _right(outputs, labels) for name, (outputs, _) in found.items()}
    assert right["digits-vote@1"] >= max(right["digits@1"], right["digits@2"])
    assert right["digits-cascade@1"] >= right["digits@2"] - 0.003
    for name in ("digits-vote", "digits-cascade"):
        assert all(map(_close, found[f"{name}@1"][0], found[f"{name}@2"][0]))
    settled = found["digits-cascade@1"][1]
    print({name: round(share, 4) for name, share in right.items()}, settled)
    assert settled["digits-1"] / len(images) >= 0.6


def _right(outputs: list[Arrays], labels: npt.NDArray[Any]) -> float:
    return float(np.mean([one["scores"][0].argmax() == label for one, label in zip(outputs, labels, strict=True)]))


def _close(one: Arrays, other: Arrays) -> bool:
    """Equal, but for the last bits of sums, which depend on how many rows shared a batch."""
    return one.keys() == other.keys() and all(np.allclose(one[name], other[name], atol=1e-5) for name in one)


def _read(
    stack: Terminal, folder: Path, chosen: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[Arrays]]:
    apply(stack, folder / "fleet.yaml")
    inputs = [{"page": texts(page)} for page in chosen.values()]

    async def work(client: InferenceClient) -> dict[str, list[Arrays]]:
        return {name: (await answers(client, name, inputs))[0] for name in ("read-page@1", "read-page@2")}

    found: dict[str, list[Arrays]] = ask(stack, work, monkeypatch)
    return found


def _same_page(one: Arrays, other: Arrays) -> bool:
    exact = ("text", "line", "box")
    return all(np.array_equal(one[name], other[name]) for name in exact) and np.allclose(
        one["score"], other["score"], atol=1e-4
    )


@takes_minutes
def test_read_page(stack: Terminal, read_page: Path, pages: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: pages[name] for name in FEW_PAGES}
    local = LocalFleet(read_page / "fleet.yaml")
    expected = [local.run("read-page@1", {"page": texts(page)}) for page in chosen.values()]
    local.close()

    found = _read(stack, read_page, chosen, monkeypatch)

    for outputs in found.values():
        assert all(map(_same_page, outputs, expected))
    assert [page["line"].shape[1] for page in expected] == [6, 1, 0, 6]


@takes_minutes
@pytest.mark.timeout(600)
def test_read_page_equals_the_library_on_every_page(
    stack: Terminal, read_page: Path, pages: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    rapidocr = pytest.importorskip("rapidocr_onnxruntime")
    library = rapidocr.RapidOCR()
    expected = ["\n".join(text for _, text, _ in library(page)[0] or ()) for page in pages.values()]

    found = _read(stack, read_page, pages, monkeypatch)

    for name, outputs in found.items():
        read = [page["text"][0].decode() for page in outputs]
        equal = sum(one == other for one, other in zip(read, expected, strict=True))
        print(f"{name}: {equal} of {len(pages)} pages read as rapidocr reads them")
        assert read == expected


@takes_minutes
@pytest.mark.timeout(600)
def test_semantic_search(stack: Terminal, semantic_search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [{"text": texts(text)} for text in ("copy a whole directory tree", "find the median of some numbers")]
    local = LocalFleet(semantic_search / "fleet.yaml")
    expected = [local.run("semantic-search@1", question, {"k": 3}) for question in questions]
    local.close()
    apply(stack, semantic_search / "fleet.yaml")

    async def work(client: InferenceClient) -> dict[str, list[Arrays]]:
        names = ("semantic-search@1", "semantic-search@2")
        return {name: (await answers(client, name, questions, {"k": 3}))[0] for name in names}

    for outputs in ask(stack, work, monkeypatch).values():
        assert all(map(same, outputs, expected))
    assert [answer["topic"][0, 0] for answer in expected] == [b"shutil.copytree", b"statistics.median"]
