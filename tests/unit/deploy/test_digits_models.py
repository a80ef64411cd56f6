from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.specs import ModelSpec, parse_fleet, parse_model

onnxruntime = pytest.importorskip("onnxruntime", reason="the example models are ONNX: install the extra 'cpu'")

FLEET = Path(__file__).resolve().parents[3] / "deploy" / "fleet"
least_accuracy = {1: 0.93, 2: 0.97}
versions = pytest.mark.parametrize("version", sorted(least_accuracy))
onnx_types = {"FP32": "tensor(float)"}


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(FLEET / "digits.npz") as archive:
        return dict(archive)


def session_of(version: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = FLEET / "models" / "digits" / str(version) / "model.onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def spec_of(version: int) -> ModelSpec:
    path = FLEET / "models" / "digits" / str(version) / "model.yaml"
    return parse_model(path.read_text(), str(path))


def scores_of(session: Any, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (scores,) = session.run(["scores"], {"image": images.astype(np.float32)})
    assert isinstance(scores, np.ndarray)
    return scores


def test_the_data_set_holds_every_image_with_its_label(digits: dict[str, np.ndarray[Any, Any]]) -> None:
    assert digits["images"].shape == (1797, 64)
    assert (digits["images"].min(), digits["images"].max()) == (0, 16)
    assert np.bincount(digits["labels"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_fifth_of_each_digit_is_held_out(digits: dict[str, np.ndarray[Any, Any]]) -> None:
    assert digits["held_out"].dtype == np.bool_
    shares = np.bincount(digits["labels"][digits["held_out"]]) / np.bincount(digits["labels"])
    assert np.allclose(shares, 0.2, atol=0.005)


@versions
def test_held_out_digits_are_recognised(version: int, digits: dict[str, np.ndarray[Any, Any]]) -> None:
    held_out = digits["held_out"]
    scores = scores_of(session_of(version), digits["images"][held_out])
    assert (scores.argmax(axis=1) == digits["labels"][held_out]).mean() >= least_accuracy[version]


@versions
def test_a_row_gets_the_same_probabilities_in_a_batch_of_any_size(
    version: int, digits: dict[str, np.ndarray[Any, Any]]
) -> None:
    session, images = session_of(version), digits["images"]
    together = scores_of(session, images[:64])
    assert np.allclose(together.sum(axis=1), 1, atol=1e-5)
    assert together.min() >= 0
    for rows in (0, 1, 3, 32):
        alone = scores_of(session, images[:rows])
        assert alone.shape == (rows, 10)
        assert np.allclose(alone, together[:rows], atol=1e-5)


@versions
def test_the_model_file_says_what_the_graph_takes_and_gives(version: int) -> None:
    spec, session = spec_of(version), session_of(version)
    assert (str(spec.key), spec.artefact_name) == (f"digits@{version}", "model.onnx")
    for declared, real in ((spec.inputs, session.get_inputs()), (spec.outputs, session.get_outputs())):
        assert [(tensor.name, onnx_types[tensor.datatype]) for tensor in declared] == [
            (tensor.name, tensor.type) for tensor in real
        ]
        # A dimension that the graph leaves open has a name there, and is -1 in the model file.
        assert [list(tensor.shape) for tensor in declared] == [
            [size if isinstance(size, int) else -1 for size in tensor.shape] for tensor in real
        ]


@versions
def test_the_accuracy_in_the_description_is_the_measured_one(
    version: int, digits: dict[str, np.ndarray[Any, Any]]
) -> None:
    held_out = digits["held_out"]
    scores = scores_of(session_of(version), digits["images"][held_out])
    percent = 100 * (scores.argmax(axis=1) == digits["labels"][held_out]).mean()
    assert f"{percent:.1f} % of held-out images" in spec_of(version).description


def test_the_fleet_deploys_only_models_that_are_there() -> None:
    fleet = parse_fleet((FLEET / "fleet.yaml").read_text(), "fleet.yaml")
    for deployment in fleet.deployments:
        path = FLEET / fleet.models / deployment.model / str(deployment.version) / "model.yaml"
        assert parse_model(path.read_text(), str(path)).key == deployment.key
    assert fleet.routes["digits"].default in [deployment.version for deployment in fleet.deployments]
