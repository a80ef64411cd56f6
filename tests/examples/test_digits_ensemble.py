from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deploy.demo.images import load_digits
from deploy.fleet.train_digits import FLEET
from deploy.fleet.train_digits import load_digits as load_training
from deploy.fleet.train_forest import export_forest, forest_scores, grow_forest
from tests.examples.kit import EXAMPLES, LocalFleet, same, script

onnxruntime = pytest.importorskip("onnxruntime", reason="the example models are ONNX: install the extra 'cpu'")

FILE = EXAMPLES / "digits-ensemble" / "fleet.yaml"
MEMBERS = ("digits@1", "digits-forest@1", "digits@2")
LARGE = "digits@2"
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    found = LocalFleet(FILE, threads=1)
    yield found
    found.close()


@pytest.fixture(scope="module")
def unseen() -> tuple[Array, Array]:
    """The images that no training and no choice of a threshold has seen, and their labels."""
    digits = load_digits()
    return digits.images[digits.held_out], digits.labels[digits.held_out]


def accuracy(scores: Array, labels: Array) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def of_models(fleet: LocalFleet, images: Array) -> dict[str, Array]:
    from contracts.names import ModelVersion

    return {key: fleet.ask(ModelVersion.parse(key), {"image": images}, {})["scores"] for key in MEMBERS}


def test_the_soft_vote_is_at_least_as_accurate_as_its_best_member(
    fleet: LocalFleet, unseen: tuple[Array, Array]
) -> None:
    images, labels = unseen
    members = {key: accuracy(scores, labels) for key, scores in of_models(fleet, images).items()}

    voted = fleet.run("digits-vote@1", {"image": images})

    assert np.array_equal(voted["label"], voted["scores"].argmax(axis=1))
    found = float((voted["label"] == labels).mean())
    assert found >= max(members.values()), members
    assert f"{100 * found:.1f} % of held-out images" in fleet.specs[fleet.plan("digits-vote@1").pipeline].description


def test_the_cascade_saves_most_rows_of_the_large_model_and_loses_next_to_nothing(
    fleet: LocalFleet, unseen: tuple[Array, Array]
) -> None:
    images, labels = unseen
    alone = accuracy(of_models(fleet, images)[LARGE], labels)
    fleet.rows.clear()

    scores = [fleet.run("digits-cascade@1", {"image": image[None]})["scores"][0] for image in images]

    assert fleet.rows["digits@1"] == len(images)
    saved = 1 - fleet.rows[LARGE] / len(images)
    assert saved >= 0.6
    assert accuracy(np.array(scores), labels) >= alone - 0.003


def test_fused_the_same_comes_out(fleet: LocalFleet, unseen: tuple[Array, Array]) -> None:
    for name in ("digits-vote", "digits-cascade"):
        chained = fleet.run(f"{name}@1", {"image": unseen[0][:5]})
        assert same(chained, fleet.run(f"{name}@2", {"image": unseen[0][:5]}))
        assert fleet.plan(f"{name}@2").is_fused


def test_the_threshold_in_the_fleet_file_is_the_one_with_the_best_row_of_the_readme() -> None:
    chooser = script("digits-ensemble", "choose_threshold")
    readme = (FILE.parent / "README.md").read_text()
    printed = re.findall(r"^ +(\d\.\d\d|inf) +([\d.]+)% +([\d.]+)%$", readme, re.MULTILINE)
    table = [chooser.Row(float(threshold), float(saved), float(right)) for threshold, saved, right in printed]
    assert [row.threshold for row in table] == [*chooser.THRESHOLDS, np.inf]
    assert f"threshold: {chooser.choose(table).threshold} " in FILE.read_text()


def test_a_cascade_table_counts_what_each_model_settles() -> None:
    chooser = script("digits-ensemble", "choose_threshold")
    small = np.array([[0.95, 0.05], [0.55, 0.45], [0.3, 0.7]], np.float32)
    large = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]], np.float32)

    table = {row.threshold: row for row in chooser.cascade_table(small, large, np.array([0, 1, 1]))}

    assert (table[0.5].saved, table[0.5].accuracy) == (1.0, pytest.approx(2 / 3))
    assert (table[0.6].saved, table[0.6].accuracy) == (pytest.approx(2 / 3), 1.0)
    assert (table[np.inf].saved, table[np.inf].accuracy) == (0.0, pytest.approx(2 / 3))


def test_an_exported_forest_says_what_its_trees_say() -> None:
    digits = load_training(FLEET / "digits.npz")
    forest = grow_forest(digits, trees=3)
    images = digits.images[digits.held_out][:100]

    session = onnxruntime.InferenceSession(export_forest(forest).SerializeToString())
    (scores,) = session.run(["scores"], {"image": images})

    np.testing.assert_allclose(scores, forest_scores(forest, images), atol=1e-6)


def test_the_accuracy_in_the_description_of_the_forest_is_the_measured_one(
    fleet: LocalFleet, unseen: tuple[Array, Array]
) -> None:
    images, labels = unseen
    percent = 100 * accuracy(of_models(fleet, images)["digits-forest@1"], labels)
    spec = (FLEET / "models" / "digits-forest" / "1" / "model.yaml").read_text()
    assert f"{percent:.1f} % of held-out images" in spec
