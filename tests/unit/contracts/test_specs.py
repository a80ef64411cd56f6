"""Specs, routes and names: what parses can be carried out, and what does not says why."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import topics
from contracts.errors import ConfigurationError, ModelNotFound
from contracts.names import NAME_PATTERN, ModelVersion, check_model_name, is_name, new_request_id
from contracts.pipelines import parse_pipeline
from contracts.routing import pin
from contracts.specs import DeploymentSpec, Knobs, RouteSpec, TopicSpec, WorkersSpec, parse_fleet, parse_model

MODEL = """
name: digits
version: 2
backend: onnx
inputs: [{name: image, datatype: FP32, shape: [-1, 64]}]
outputs: [{name: scores, datatype: FP32, shape: [-1, 10]}]
"""
DEPLOYED = [ModelVersion("digits", 1), ModelVersion("digits", 2), ModelVersion("other", 7)]


def test_a_model_gets_its_backends_defaults() -> None:
    spec = parse_model(MODEL, "model.yaml")
    assert spec.artefact_name == "model.onnx"
    assert spec.max_queue_rows == 8 * spec.batching.max_batch_size
    assert str(spec.key) == "digits@2"


def test_a_python_models_file_is_that_of_its_handler_unless_it_names_another() -> None:
    spec = parse_model(MODEL.replace("backend: onnx", "backend: python\nhandler: text.speller:Speller"), "model.yaml")
    assert spec.artefact_name == "text/speller.py"
    assert spec.model_copy(update={"artefact": "weights.npz"}).artefact_name == "weights.npz"
    assert spec.model_copy(update={"handler": ""}).artefact_name == "model.py"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("version: 2", "version: 0"), "version"),
        (("name: digits", "name: ../x"), "name"),
        (("name: digits", "name: a..b"), "without '..'"),
        (("name: digits", "name: llama-3.1"), "write 'llama-3-1', or 'llama-3@1'"),
        (("backend: onnx", "backend: pickle"), "backend"),
        (("shape: [-1, 64]", "shape: [1, 64]"), "first dimension is the batch"),
        (("datatype: FP32, shape: [-1, 64]", "datatype: FLOAT, shape: [-1, 64]"), "unknown datatype"),
        (("backend: onnx", "backend: onnx\nhandler: a:B"), "handler belongs to the python and torch backends"),
        (("backend: onnx", "backend: onnx\nartefact: ../../x.onnx"), "own folder"),
        (("backend: onnx", "backend: onnx\nbatchng: {}"), "batchng"),
        (
            ("backend: onnx", "backend: onnx\nbatching: {batch_invariant: true, preferred_batch_sizes: [8]}"),
            "leave out preferred_batch_sizes",
        ),
        (
            ("backend: onnx", "backend: onnx\nbatching: {batch_invariant: true, padding: {offsets: image}}"),
            "padding.offsets and batch_invariant exclude each other",
        ),
        (
            ("backend: onnx", "backend: python\nstreaming: true\nbatching: {batch_invariant: true}"),
            "batch_invariant and streaming exclude each other",
        ),
        (("name: digits", "name: [digits"), "not valid YAML"),
    ],
)
def test_a_faulty_model_names_file_field_and_remedy(change: tuple[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        parse_model(MODEL.replace(*change), "the/model.yaml")
    assert "the/model.yaml" in str(caught.value)


def test_a_batch_invariant_model_takes_no_preferred_sizes_by_hand_either() -> None:
    spec = parse_model(f"{MODEL}batching: {{batch_invariant: true}}", "model.yaml")
    assert Knobs(max_batch_size=8).applied(spec.batching).batch_invariant
    with pytest.raises(ConfigurationError, match="leave out preferred_batch_sizes"):
        Knobs(preferred_batch_sizes=(8, 16)).applied(spec.batching)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a list", "must be a mapping"),
        ("deployments: [{model: a, version: 1}, {model: a, version: 1}]", "deployed twice"),
        ("deployments: [{model: a.b, version: 1}, {model: a_b, version: 1}]", "share Kafka metrics"),
        ("deployments: [{model: a, version: 1, workers: {min: 3, max: 2}}]", "min 3 is above max 2"),
        ("deployments: [{model: a, version: 1, device: {kind: tpu}}]", "kind"),
        ("deployments: [{models: [a@1, b@1]}, {model: b, version: 1}]", "b@1 is deployed twice"),
        ("deployments: [{models: [a@1, b@1, b@1]}]", "b@1 stands twice"),
        ("deployments: [{model: c, version: 1, models: [a@1, b@1]}]", "either model and version, or models"),
        ("deployments: [{models: [a, b@1]}]", "'a' is no model version"),
        ("deployments: [{models: []}]", "model"),
        ("deployments: [{model: a.1, version: 1}]", "write 'a-1', or 'a@1'"),
        ("routes: {a.1: {default: 1}}", "write 'a-1', or 'a@1'"),
    ],
)
def test_a_faulty_fleet_is_explained(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_fleet(text, "fleet.yaml")


def test_partitions_leave_room_for_every_worker() -> None:
    assert DeploymentSpec(model="a", version=1).partitions == 8
    assert DeploymentSpec(model="a", version=1, workers=WorkersSpec(min=0, max=50)).partitions == 200


@pytest.mark.parametrize(
    ("model", "version", "expected"), [("digits", 1, 1), ("digits", None, 2), ("other", None, 7), ("other", 7, 7)]
)
def test_a_request_is_pinned_to_the_version_it_means(model: str, version: int | None, expected: int) -> None:
    routes = {"digits": RouteSpec(default=2)}
    assert pin(model, version, routes=routes, deployed=DEPLOYED) == ModelVersion(model, expected)


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("digits", 3, r"versions \[1, 2\]"),
        ("digits", None, "no default route"),
        ("missing", None, "deployed: digits@1"),
    ],
)
def test_what_cannot_be_pinned_says_what_there_is(model: str, version: int | None, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words):
        pin(model, version, routes={}, deployed=DEPLOYED)


@pytest.mark.parametrize(
    "text", ["digits", "digits@", "@1", "digits@0", "digits@x", "Digits@1", "a..b@1", "digits@1@2", "a.1@2", "a.007@2"]
)
def test_only_name_at_version_is_a_model_version(text: str) -> None:
    with pytest.raises(ConfigurationError):
        ModelVersion.parse(text)


@given(st.from_regex(NAME_PATTERN, fullmatch=True), st.from_regex(NAME_PATTERN, fullmatch=True), st.integers(1, 20))
def test_the_topic_of_a_model_is_never_that_of_anothers_version(first: str, second: str, version: int) -> None:
    for name in (first, f"{second}.{version}", f"{second}.{version}.high", f"{second}.{version}.low"):
        try:
            check_model_name(name)
        except ConfigurationError:
            continue
        unversioned = f"p.requests.{name}"  # reserved for requests to any version
        assert unversioned != topics.requests("p", second, version)
        assert topics.parse_requests("p", unversioned) is None


NAMES = st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda name: ".." not in name)


@given(st.lists(st.tuples(NAMES, st.integers(1, 20)), min_size=1, max_size=6, unique=True))
def test_no_two_request_topics_or_lanes_are_one_and_each_tells_whose_it_is(keys: list[tuple[str, int]]) -> None:
    found: dict[str, tuple[str, int]] = {}
    for name, version in keys:
        for candidate in (name, f"{name}.high", f"{name}.{version}.low", f"{name}.low.{version}"):
            try:
                check_model_name(candidate)
            except ConfigurationError:
                continue
            base = topics.requests("p", candidate, version)
            for topic in (base, *(topics.lane(base, priority) for priority in topics.LANES)):
                assert found.setdefault(topic, (candidate, version)) == (candidate, version)
                assert topics.parse_requests("p", topic) == (candidate, version)
                assert topics.without_lane(topic) == base
            found[f"p.requests.{candidate}"] = (candidate, 0)  # reserved for requests to any version


@pytest.mark.parametrize(("name", "lane"), [("a.1.high", "a.1"), ("a.12.low", "a.12")])
def test_a_model_is_not_called_like_a_lane(name: str, lane: str) -> None:
    with pytest.raises(ConfigurationError, match=f"a lane in the names of topics; write 'a-{lane[2:]}"):
        check_model_name(name)
    assert check_model_name("a.high") == "a.high"
    assert check_model_name(f"{lane}.medium")


def test_the_registry_names_lanes_only_where_they_are_asked_for() -> None:
    asked, unasked = (DeploymentSpec(model="m", version=1, topic=TopicSpec(lanes=lanes)) for lanes in (True, False))
    assert json.loads(asked.model_dump_json())["topic"]["lanes"] is True
    assert "lanes" not in json.loads(unasked.model_dump_json())["topic"]
    assert unasked.model_dump()["topic"]["lanes"] is False  # who compares two deployments sees it
    assert all(DeploymentSpec.model_validate_json(one.model_dump_json()) == one for one in (asked, unasked))


def test_a_pipelines_own_topic_has_no_lanes() -> None:
    text = """
name: p
version: 1
inputs: [{name: x, datatype: FP32, shape: [-1]}]
steps: {a: {model: m, inputs: {x: input.x}}}
outputs: {y: a.y}
topic: {lanes: true}
"""
    with pytest.raises(ConfigurationError, match="belongs to the deployments of models"):
        parse_pipeline(text, "p.yaml")


@pytest.mark.parametrize("name", ["a1", "1", "v1.b", "1.5b", "a.1-base", "a.1b"])
def test_digits_in_a_models_name_are_fine_elsewhere(name: str) -> None:
    assert ModelVersion.parse(f"{name}@3") == ModelVersion(name, 3)
    assert is_name(f"{name}.1")  # as an inbox or a pool


def test_request_ids_are_new_each_time() -> None:
    assert new_request_id() != new_request_id()
    assert not is_name("a" * 65)


def test_a_deployment_of_several_models_goes_by_the_first() -> None:
    (shared,) = parse_fleet("deployments: [{models: [a@1, b@2]}]", "fleet.yaml").deployments
    assert str(shared.key) == "a@1"
    assert list(map(str, shared.keys)) == ["a@1", "b@2"]
    assert DeploymentSpec.model_validate_json(shared.model_dump_json()) == shared


def test_a_list_of_one_model_is_that_model() -> None:
    (alone,) = parse_fleet("deployments: [{models: [a@1]}]", "fleet.yaml").deployments
    assert alone == DeploymentSpec(model="a", version=1)
    assert list(map(str, alone.keys)) == ["a@1"]
