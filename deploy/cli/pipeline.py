"""`headrace pipeline graph`: what a pipeline looks like, from a file or from the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import ConfigurationError
from deploy.cli import inspection
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.adapters.registry import RegistryState
    from contracts.names import ModelVersion
    from contracts.pipelines import PipelineSpec
    from deploy.graph.picture import Picture

pipeline = typer.Typer(help="Draw a pipeline, look at its tensors.", no_args_is_help=True)
pipeline.command("inspect")(inspection.inspect)


@pipeline.command("graph")
def graph(
    which: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE", help="A registered pipeline (name or name@version), a pipeline file or a fleet file."
        ),
    ],
    *,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME", help="Of a fleet file: this pipeline.", show_default=False)
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write an SVG instead.", show_default=False)
    ] = None,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Draw the steps and what they take from each other.

    Boxes with a double (in SVG: thick) border are joins, which wait for several steps; nested pipelines and loops are
    drawn as they run. A file is drawn without asking the registry: versions that are not written stay open.
    """
    from deploy.cli.output import print_json
    from deploy.graph import svg as drawing
    from deploy.graph import terminal

    path = Path(which)
    pictures = _of_file(path, only) if path.is_file() else [_of_registry(which, data)]
    if json:
        print_json({"pipelines": [picture.as_json() for picture in pictures]})
    elif svg is None:
        print("\n\n".join(f"{picture.title}\n\n{terminal.draw(picture)}" for picture in pictures))
    elif len(pictures) > 1:
        names = ", ".join(picture.title for picture in pictures)
        msg = f"{path} has several pipelines ({names}): choose one with --only"
        raise ConfigurationError(msg)
    else:
        _write(svg, drawing.draw(pictures[0]))
        print(f"{svg}: {pictures[0].title}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        msg = f"{path} cannot be written: {exc.strerror}"
        raise ConfigurationError(msg) from exc


def _of_file(path: Path, only: str | None) -> list[Picture]:
    from contracts.pipelines import parse_pipeline
    from contracts.yaml_lines import load
    from deploy.cli.repository import read_fleet

    text = path.read_text(encoding="utf-8")
    content, _ = load(text, str(path))
    if isinstance(content, dict) and "steps" in content:
        found = [parse_pipeline(text, str(path))[0]]
    else:
        found = [one.spec for one in read_fleet(path).pipelines]
    known = {spec.key: spec for spec in found}
    chosen = [spec for spec in found if only is None or only in (spec.name, str(spec.key))]
    if not chosen:
        msg = f"{path} has no pipeline{f' {only}' if only else ''}; it has {', '.join(map(str, known)) or 'none'}"
        raise ConfigurationError(msg)
    return [_unpinned(spec, known) for spec in chosen]


def _unpinned(spec: PipelineSpec, known: dict[ModelVersion, PipelineSpec]) -> Picture:
    """The picture of a pipeline whose models nobody knows: what is not pinned keeps the text it is written with."""
    from contracts.compile import compile_plan
    from contracts.names import MAX_VERSION, ModelVersion
    from contracts.pipeline_sources import ModelRef
    from deploy.graph.picture import picture

    written: dict[ModelVersion, str] = {}

    def pin(name: str, version: int | None, label: str | None) -> ModelVersion:
        inner = [key for key in known if key.model == name]
        if version is not None or inner:
            return ModelVersion(name, version or max(inner).version)
        text = str(ModelRef(name, None, label))
        taken = {other: key for key, other in written.items()}
        key = taken.get(text) or ModelVersion(name, MAX_VERSION - len(written))
        written[key] = text
        return key

    def nested(key: ModelVersion) -> PipelineSpec:
        if key not in known:
            msg = f"pipeline {key} is not in this file: apply it, and draw it by its name"
            raise ConfigurationError(msg)
        return known[key]

    plan = compile_plan(spec, pin=pin, signature_of=lambda _: None, pipeline_of=nested)
    return picture(plan, written)


def _of_registry(which: str, data: Path | None) -> Picture:
    from deploy.cli import connection

    return connection.run(_read(which, data))


async def _read(which: str, data: Path | None) -> Picture:
    from deploy.cli import connection
    from deploy.cli.connection import open_control

    async with open_control(connection.load(data)) as control:
        return registered(which, await control.registry.snapshot())


def registered(which: str, state: RegistryState) -> Picture:
    """The picture of a pipeline as a job that is submitted now would run it. Raises ConfigurationError."""
    from contracts.compile import compile_plan, signature_of_spec
    from contracts.pipelines import PipelineSpec
    from contracts.routing import labelled, pin
    from deploy.graph.picture import picture

    specs = {key: PipelineSpec.model_validate(each.spec) for key, each in state.pipelines.items()}
    wanted = sorted(key for key in specs if which in (key.model, str(key)))
    if not wanted:
        msg = f"there is no file and no pipeline {which}; registered: {', '.join(map(str, sorted(specs))) or 'none'}"
        raise ConfigurationError(msg)

    def pinned(name: str, version: int | None, label: str | None) -> ModelVersion:
        number = labelled(name, label, state.routes) if label else version
        return pin(name, number, routes=state.routes, deployed=state.served)

    plan = compile_plan(
        specs[wanted[-1]],
        pin=pinned,
        signature_of=lambda key: signature_of_spec(state.models[key].spec) if key in state.models else None,
        pipeline_of=lambda key: specs[key],
    )
    return picture(plan, {})
