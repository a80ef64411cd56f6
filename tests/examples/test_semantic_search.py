from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import InvalidRequest
from contracts.names import ModelVersion
from tests.examples.kit import LocalFleet, same, script, takes_minutes, texts

QUESTIONS = {
    "copy a whole directory tree": "shutil.copytree",
    "find the median of some numbers": "statistics.median",
    "measure how long a piece of code takes": "timeit",
    "wait for several threads to finish": "threading.Thread.join",
    "open a web page in the browser": "webbrowser.open",
    "make a temporary file that deletes itself": "tempfile.NamedTemporaryFile",
    "when is an object garbage collected": "objects",
    "encode data as JSON": "json.dump",
}
"""Questions, and where the answer stands: no question has the words of its answer only."""


def test_sentences_are_thousands_of_whole_ones_each_once() -> None:
    found = script("semantic-search", "build_index").sentences()
    assert len(found) >= 4000
    assert len({sentence.text for sentence in found}) == len(found)
    assert all(sentence.text[-1] in ".!?" and "\n" not in sentence.text for sentence in found)
    assert all(25 <= len(sentence.text) <= 500 for sentence in found)
    assert {"objects", "shutil.copytree", "statistics.median"} <= {sentence.topic for sentence in found}


def test_the_nearest_are_found_best_first_and_ties_in_the_order_of_the_index() -> None:
    nearest = _nearest()
    found = nearest.infer({"embedding": np.array([[1, 0], [0, 1]], np.float32)}, {"k": 3})
    assert found["topic"].tolist() == [[b"east", b"also east", b"north-east"], [b"north", b"north-east", b"east"]]
    assert found["score"].dtype == np.float32
    np.testing.assert_allclose(found["score"][0], [1, 1, 0.7071], atol=1e-4)


@pytest.mark.parametrize("k", [0, 101, "five", 1.5])
def test_a_k_that_cannot_be_is_refused(k: object) -> None:
    with pytest.raises(InvalidRequest, match="whole number from 1 to 100"):
        _nearest().infer({"embedding": np.zeros((1, 2), np.float32)}, {"k": k})


def _nearest() -> Any:
    nearest = script("semantic-search", "models/text-nearest/1/nearest").Nearest()
    nearest._vectors = np.array([[1, 0], [1, 0], [0, 1], [0.7071, 0.7071]], np.float32)
    nearest._topics = np.array([b"east", b"also east", b"north", b"north-east"], object)
    nearest._sentences = nearest._topics
    return nearest


@pytest.fixture(scope="module")
def fleet(semantic_search: Path) -> Iterator[LocalFleet]:
    found = LocalFleet(semantic_search / "fleet.yaml")
    yield found
    found.close()


@takes_minutes
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_questions_find_the_sentences_that_answer_them(fleet: LocalFleet) -> None:
    answer = fleet.run("semantic-search@1", {"text": texts(*QUESTIONS)}, {"k": 3})

    assert answer["topic"].shape == (len(QUESTIONS), 3)
    assert answer["pieces"].min() >= 5
    assert (np.diff(answer["score"], axis=1) <= 0).all()
    hits = sum(
        any(topic.decode().startswith(expected) for topic in found)
        for found, expected in zip(answer["topic"], QUESTIONS.values(), strict=True)
    )
    print(f"{hits} of {len(QUESTIONS)} questions find their answer among the first 3")
    assert hits >= len(QUESTIONS) - 2
    assert same(answer, fleet.run("semantic-search@2", {"text": texts(*QUESTIONS)}, {"k": 3}))


@takes_minutes
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sentence_finds_itself_and_embeddings_have_length_one(fleet: LocalFleet) -> None:
    with np.load(fleet._folder / "text-nearest/1/index.npz") as index:
        sentences, vectors = index["sentences"][::300], index["vectors"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    found = fleet.run("semantic-search@1", {"text": texts(*sentences.tolist())}, {"k": 1})
    assert found["sentence"][:, 0].tolist() == sentences.tolist()
    tokens = fleet.ask(ModelVersion("text-tokens", 1), {"text": texts("one two", "three " * 100)}, {})
    assert tokens["count"].tolist() == [4, 64]
