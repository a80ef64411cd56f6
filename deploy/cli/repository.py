"""A fleet file and the model folders that it names, read from disk and checked before anything is changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from contracts.adapters.registry import RegisteredModel
from contracts.artefacts import RUNS_CODE, digest_folder
from contracts.errors import ConfigurationError
from contracts.names import ModelVersion
from contracts.pipelines import PipelineSpec, parse_pipeline, pipeline_from
from contracts.specs import DeploymentSpec, FleetSpec, parse_fleet, parse_model
from contracts.yaml_lines import Lines, load

MODEL_FILE = "model.yaml"


@dataclass(frozen=True)
class PipelineFile:
    """A pipeline, and where each part of it stands, for messages."""

    spec: PipelineSpec
    source: str
    lines: Lines


@dataclass(frozen=True)
class FleetFile:
    """What a fleet file asks for, with every model version that it deploys."""

    path: Path
    spec: FleetSpec
    models: tuple[RegisteredModel, ...]
    pipelines: tuple[PipelineFile, ...] = ()


def read_fleet(path: Path) -> FleetFile:
    """Read a fleet file and its models. Raises ConfigurationError with the file, the fault and the remedy."""
    text = _text(path, "fleet file")
    spec = parse_fleet(text, str(path))
    folder = _models_folder(path, spec.models)
    pipelines = _read_pipelines(path, text, spec)
    models = tuple(_read_model(folder, key, one) for one in spec.deployments for key in one.keys)
    return FleetFile(path, spec, models, pipelines)


def _read_pipelines(path: Path, text: str, spec: FleetSpec) -> tuple[PipelineFile, ...]:
    found = []
    _, lines = load(text, str(path)) if spec.pipelines else (None, Lines())
    for index, entry in enumerate(spec.pipelines):
        if isinstance(entry, str):
            source = str((path.parent / Path(entry).expanduser()).resolve())
            pipeline, its_lines = parse_pipeline(_text(Path(source), "pipeline file"), source)
        else:
            source, its_lines = str(path), lines.below(("pipelines", index))
            pipeline = pipeline_from(entry, source, its_lines)
        found.append(PipelineFile(pipeline, source, its_lines))
    twice = [str(key) for key, count in Counter(one.spec.key for one in found).items() if count > 1]
    if twice:
        msg = f"{path}: pipeline {twice[0]} is defined twice"
        raise ConfigurationError(msg)
    return tuple(found)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"there is no {what} {path}"
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"the {what} {path} cannot be read: {exc}"
    raise ConfigurationError(msg)


def _models_folder(path: Path, models: str) -> Path:
    place = models.removeprefix("file://")
    if "://" in place:
        msg = f"{path}: models at {models} cannot be read; only folders of this machine can, by path or file:// URL"
        raise ConfigurationError(msg)
    return (path.absolute().parent / Path(place).expanduser()).resolve()


def _read_model(models: Path, key: ModelVersion, deployment: DeploymentSpec) -> RegisteredModel:
    folder = models / key.model / str(key.version)
    source = folder / MODEL_FILE
    if not source.is_file():
        msg = f"{key} has no {MODEL_FILE}: expected at {source}"
        raise ConfigurationError(msg)
    spec = parse_model(_text(source, "model file"), str(source))
    if spec.key != key:
        msg = f"{source} says {spec.key}, but its folder is that of {key}; correct name and version"
        raise ConfigurationError(msg)
    if not (folder / spec.artefact_name).is_file():
        artefact = folder / spec.artefact_name
        msg = f"{key} has no artefact: {artefact} does not exist; see `artefact` in {source}"
        raise ConfigurationError(msg)
    if spec.backend in RUNS_CODE and not deployment.allow_code:
        msg = (
            f"{key} would run code of its own ({RUNS_CODE[spec.backend]}): say `allow_code: true` in its "
            "deployment if you trust it"
        )
        raise ConfigurationError(msg)
    return RegisteredModel(spec=spec, uri=str(folder), digest=digest_folder(folder))
