"""What `headrace apply` reads, refuses and would change, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.registry import RegisteredModel, RegistryState
from contracts.artefacts import digest_folder
from contracts.errors import ConfigurationError
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, FleetSpec, ModelSpec, RouteSpec
from deploy.cli.changes import changes
from deploy.cli.repository import read_fleet

DIGITS = ModelVersion("digits", 1)
_tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}


def model_yaml(name: str = "digits", version: int = 1, **more: object) -> dict[str, object]:
    return {"name": name, "version": version, "backend": "onnx", "inputs": [_tensor], "outputs": [_tensor], **more}


def write_model(root: Path, *, folder: str = "digits/1", artefact: str = "model.onnx", **spec: object) -> Path:
    place = root / "models" / folder
    place.mkdir(parents=True)
    (place / "model.yaml").write_text(yaml.safe_dump(model_yaml(**spec)))  # type: ignore[arg-type]
    if artefact:
        (place / artefact).write_bytes(b"weights")
    return place


def write_fleet(root: Path, *deployments: dict[str, object], **more: object) -> Path:
    path = root / "fleet.yaml"
    path.write_text(yaml.safe_dump({"deployments": list(deployments), **more}))
    return path


def registered(key: ModelVersion = DIGITS, digest: str = "sha256:aaaaaaaaaaaaaaaaaaaa") -> RegisteredModel:
    spec = ModelSpec.model_validate(model_yaml(key.model, key.version))
    return RegisteredModel(spec=spec, uri="/m", digest=digest)


def state(**known: object) -> RegistryState:
    return RegistryState(**{"revision": 1, "models": {}, "deployments": {}, "routes": {}, **known})  # type: ignore[arg-type]


def fleet(*versions: int, default: int | None = None, most: int = 1) -> FleetSpec:
    deployments = [{"model": "digits", "version": version, "workers": {"max": most}} for version in versions]
    routes = {"digits": {"default": default}} if default else {}
    return FleetSpec.model_validate({"deployments": deployments, "routes": routes})


def test_a_fleet_file_is_read_with_its_models(tmp_path: Path) -> None:
    place = write_model(tmp_path)
    found = read_fleet(write_fleet(tmp_path, {"model": "digits", "version": 1}))
    assert [str(model.key) for model in found.models] == ["digits@1"]
    assert found.models[0].uri == str(place)
    assert found.models[0].digest == digest_folder(place)


def test_the_digest_is_what_sha256sum_tells(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"2")
    by_hand = "8fd09e7f56ea2d7558514f4f9816056864647f30ca09a74db7d43e8e0ae0673d"  # sha256sum a deep/b | sha256sum
    assert digest_folder(tmp_path) == f"sha256:{by_hand}"


def test_caches_do_not_change_the_digest(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("x = 1\n")
    before = digest_folder(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"compiled")
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert digest_folder(tmp_path) == before
    (tmp_path / "extra.txt").write_text("")
    assert digest_folder(tmp_path) != before


@pytest.mark.parametrize(
    ("deployment", "spec", "says"),
    [
        ({"model": "digits", "version": 2}, {}, "digits@2 has no model.yaml"),
        ({"model": "digits", "version": 1}, {"version": 3}, "says digits@3"),
        ({"model": "digits", "version": 1}, {"artefact": ""}, "has no artefact"),
        ({"model": "digits", "version": 1}, {"backend": "python", "artefact": "model.py"}, "allow_code: true"),
        ({"model": "digits", "version": 1}, {"backend": "torch", "artefact": "model.pt"}, "allow_code: true"),
    ],
)
def test_a_deployment_that_cannot_work_is_refused_with_its_remedy(
    tmp_path: Path, deployment: dict[str, object], spec: dict[str, object], says: str
) -> None:
    write_model(tmp_path, **spec)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=says):
        read_fleet(write_fleet(tmp_path, deployment))


def test_code_runs_where_it_is_allowed(tmp_path: Path) -> None:
    write_model(tmp_path, backend="python", artefact="model.py")
    found = read_fleet(write_fleet(tmp_path, {"model": "digits", "version": 1, "allow_code": True}))
    assert found.models[0].spec.backend == "python"


def test_a_missing_fleet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no fleet file .*nix\.yaml"):
        read_fleet(tmp_path / "nix.yaml")


def test_models_in_a_store_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="s3://bucket"):
        read_fleet(write_fleet(tmp_path, {"model": "digits", "version": 1}, models="s3://bucket/models"))


def test_a_new_fleet_is_created_in_the_order_in_which_things_need_each_other() -> None:
    found = changes(fleet(1, default=1), {DIGITS: registered()}, state())
    assert [(change.kind, change.change) for change in found] == [
        ("model", "created"),
        ("deployment", "created"),
        ("route", "created"),
    ]


def test_what_is_the_same_is_unchanged_and_what_differs_says_how() -> None:
    known = state(
        models={DIGITS: registered()},
        deployments={DIGITS: DeploymentSpec.model_validate({"model": "digits", "version": 1})},
    )
    assert {change.change for change in changes(fleet(1), {DIGITS: registered()}, known)} == {"unchanged"}
    grown = changes(fleet(1, most=4), {DIGITS: registered()}, known)
    assert [(change.change, change.detail) for change in grown] == [
        ("unchanged", ""),
        ("changed", "workers.max: 1 → 4"),
    ]


def test_a_registered_version_never_changes_its_files() -> None:
    known = state(models={DIGITS: registered()})
    other = {DIGITS: registered(digest="sha256:bbbbbbbbbbbbbbbbbbbb")}
    with pytest.raises(ConfigurationError, match="new version number"):
        changes(fleet(1), other, known)
    assert changes(fleet(1), other, known, replace=True)[0].change == "changed"


def test_names_that_share_metrics_are_refused() -> None:
    known = state(models={ModelVersion("my_digits", 1): registered(ModelVersion("my_digits", 1))})
    twin = ModelVersion("my.digits", 1)
    with pytest.raises(ConfigurationError, match="would share Kafka metrics"):
        changes(FleetSpec(), {twin: registered(twin)}, known)


def test_a_route_must_lead_somewhere() -> None:
    with pytest.raises(ConfigurationError, match="leads to version 2, which is not deployed"):
        changes(fleet(1, default=2), {DIGITS: registered()}, state())
    deployed = {ModelVersion("digits", 2): DeploymentSpec.model_validate({"model": "digits", "version": 2})}
    assert changes(fleet(1, default=2), {DIGITS: registered()}, state(deployments=deployed))
    with pytest.raises(ConfigurationError, match="not deployed"):
        changes(fleet(1, default=2), {DIGITS: registered()}, state(deployments=deployed), prune=True)


@given(st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6)), st.booleans())
def test_every_deployment_of_file_or_registry_is_accounted_for_once(
    wanted: set[int],
    known: set[int],
    prune: bool,  # noqa: FBT001 - hypothesis hands it over
) -> None:
    deployed = {
        ModelVersion("digits", version): DeploymentSpec.model_validate({"model": "digits", "version": version})
        for version in known
    }
    found = changes(fleet(*sorted(wanted)), {}, state(deployments=deployed), prune=prune)
    verbs = {change.name: change.change for change in found}
    assert len(found) == len(verbs) == len(wanted | known)
    assert {name for name, verb in verbs.items() if verb == "created"} == {f"digits@{v}" for v in wanted - known}
    gone = {name for name, verb in verbs.items() if verb == ("removed" if prune else "left")}
    assert gone == {f"digits@{v}" for v in known - wanted}


def test_a_route_that_is_not_in_the_file_goes_before_its_deployment() -> None:
    known = state(
        deployments={DIGITS: DeploymentSpec.model_validate({"model": "digits", "version": 1})},
        routes={"digits": RouteSpec(default=1)},
    )
    found = changes(FleetSpec(), {}, known, prune=True)
    assert [(change.kind, change.change) for change in found] == [("route", "removed"), ("deployment", "removed")]


def shared_fleet(*names: str) -> FleetSpec:
    return FleetSpec.model_validate({"deployments": [{"models": list(names)}]})


def test_every_model_of_a_shared_deployment_is_read_and_needs_its_own_folder(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_model(tmp_path, folder="other/3", name="other", version=3)
    found = read_fleet(write_fleet(tmp_path, {"models": ["digits@1", "other@3"]}))
    assert [str(model.key) for model in found.models] == ["digits@1", "other@3"]
    with pytest.raises(ConfigurationError, match=r"gone@1 has no model\.yaml"):
        read_fleet(write_fleet(tmp_path, {"models": ["digits@1", "gone@1"]}))


def test_a_model_is_served_by_one_deployment_only() -> None:
    known = state(deployments={DIGITS: DeploymentSpec(model="digits", version=1)})
    with pytest.raises(ConfigurationError, match=r"digits@1 is served by the deployment digits@1 already.*--prune"):
        changes(shared_fleet("other@3", "digits@1"), {}, known)
    found = changes(shared_fleet("other@3", "digits@1"), {}, known, prune=True)
    assert [(change.name, change.change) for change in found] == [("other@3", "created"), ("digits@1", "removed")]


def test_a_model_that_leaves_a_shared_deployment_is_served_all_the_time() -> None:
    (shared,) = shared_fleet("digits@1", "digits@2").deployments
    found = changes(fleet(1, 2), {}, state(deployments={DIGITS: shared}))
    assert [(change.name, change.change) for change in found] == [("digits@2", "created"), ("digits@1", "changed")]


@pytest.mark.parametrize(
    ("more", "what"),
    [({"batching": {"order": "per_key"}}, "batching.order per_key"), ({"sequences": {}}, "sequences")],
)
def test_lanes_are_refused_for_models_whose_requests_must_stay_in_order(more: dict[str, object], what: str) -> None:
    spec = ModelSpec.model_validate({**model_yaml(), "backend": "python", **more})
    models = {DIGITS: RegisteredModel(spec=spec, uri="/m", digest="d")}
    wanted = fleet(1)
    assert changes(wanted, models, state())
    laned = FleetSpec.model_validate({"deployments": [{"model": "digits", "version": 1, "topic": {"lanes": True}}]})
    with pytest.raises(ConfigurationError, match=f"digits@1 has {what}.*leave one of the two out"):
        changes(laned, models, state())
    with pytest.raises(ConfigurationError, match="leave one of the two out"):  # that which is registered counts, too
        changes(laned, {}, state(models=models))
    assert changes(laned, {DIGITS: registered()}, state())
