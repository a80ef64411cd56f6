"""The models of the examples: a row's results are the same, to the last bit, alone and in any company."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from contracts.names import ModelVersion
from deploy.demo.images import load_digits
from tests.examples.kit import EXAMPLES, Arrays, LocalFleet, script, takes_minutes

pytest.importorskip("onnxruntime", reason="the example models are ONNX: install the extra 'cpu'")


def check(fleet: LocalFleet, model: str, rows: Arrays, sizes: Sequence[int]) -> None:
    """Ask for every row alone, and for random rows in batches of these sizes."""
    key, count, dice = ModelVersion.parse(model), len(next(iter(rows.values()))), np.random.default_rng(3)
    alone = [fleet.ask(key, {name: array[row : row + 1] for name, array in rows.items()}, {}) for row in range(count)]
    for size in sizes:
        chosen = dice.integers(0, count, size)
        found = fleet.ask(key, {name: array[chosen] for name, array in rows.items()}, {})
        for name, array in found.items():
            expected = np.concatenate([alone[row][name] for row in chosen])
            assert np.array_equal(array, expected), f"{model}: {name} in a batch of {size}"


@pytest.mark.parametrize("model", ["digits@1", "digits-forest@1", "digits@2"])
def test_an_image_is_classified_the_same(model: str) -> None:
    fleet = LocalFleet(EXAMPLES / "digits-ensemble" / "fleet.yaml", threads=1)
    digits = load_digits()
    check(fleet, model, {"image": digits.images[digits.held_out][:100]}, (2, 3, 7, 16, 33, 64))
    fleet.close()


@pytest.mark.parametrize("size", [2, 5])
def test_a_text_has_the_same_neighbours_and_scores(size: int) -> None:
    nearest = script("semantic-search", "models/text-nearest/1/nearest").Nearest()
    dice = np.random.default_rng(5)
    nearest._vectors = dice.standard_normal((500, 384)).astype(np.float32)
    nearest._topics = nearest._sentences = np.array([b"%d" % row for row in range(500)], object)
    texts = dice.standard_normal((size, 384)).astype(np.float32)
    together = nearest.infer({"embedding": texts}, {})["score"]
    alone = [nearest.infer({"embedding": text[None]}, {})["score"] for text in texts]
    assert np.array_equal(together, np.concatenate(alone))


@takes_minutes
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_line_is_turned_and_read_the_same(read_page: Path) -> None:
    fleet = LocalFleet(read_page / "fleet.yaml", threads=1)
    dice = np.random.default_rng(7)
    for model, width in (("line-turn@1", 192), ("line-read@1", 320), ("line-read@1", 501)):
        strips = dice.integers(0, 256, (4, 48, width, 3), np.uint8)
        rows = {"strip": strips, "filled": np.array([width, 100, 17, width - 1])}
        check(fleet, model, rows, (2, 3, 6))
    fleet.close()


@takes_minutes
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_text_has_the_same_embedding(semantic_search: Path) -> None:
    fleet = LocalFleet(semantic_search / "fleet.yaml", threads=1)
    texts = np.array([b"one", b"two words", b"a sentence that is somewhat longer", b"word " * 100], object)
    tokens = fleet.ask(ModelVersion("text-tokens", 1), {"text": texts}, {})
    check(fleet, "text-encode@1", {name: tokens[name] for name in ("input_ids", "attention_mask")}, (2, 3, 5, 16))
    fleet.close()
