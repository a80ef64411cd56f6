"""`headrace infer`: one request from the shell, through everything that a program's request goes through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import ConfigurationError, DeadlineExceeded, ModelNotFound
from contracts.messages import Priority
from deploy.cli.errors import NotReady
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.messages import Response
    from contracts.pipelines import PipelineSpec
    from contracts.settings import HeadraceSettings
    from contracts.specs import ModelSpec
    from producer.client import InferenceClient

_INBOX = {"name": "cli", "partitions": 16}


def infer(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL[@VERSION]", help="A model or a pipeline; without a version the route decides."),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=@FILE|NAME=JSON", help="One input, rows first. Repeatable."),
    ] = None,
    input_json: Annotated[
        str, typer.Option("--input-json", metavar="FILE|-", help="All inputs as JSON, from a file or standard input.")
    ] = "",
    ttl: Annotated[
        float, typer.Option("--ttl", metavar="SECONDS", min=0.001, help="How long an answer is of use.")
    ] = 30.0,
    priority: Annotated[Priority, typer.Option("--priority", help="Who goes first while others wait.")] = "normal",
    data: Data = None,
    *,
    stream: Annotated[bool, typer.Option("--stream", help="Print the parts of the answer as they come.")] = False,
    json: AsJson = False,
) -> None:
    """Ask a model or a pipeline, and print what it answers.

    Behind the outputs stands where the time went. JSON inputs have the form of the Open Inference Protocol, or map
    names to nested lists.
    """
    from deploy.cli import connection

    if bool(inputs) == bool(input_json):
        msg = "give the inputs either as --input NAME=VALUE (once for each) or as --input-json FILE"
        raise ConfigurationError(msg)
    text = _read(input_json) if input_json else ""
    settings = connection.load(data)
    if stream:
        connection.run(_stream(settings, model, inputs or [], text, ttl, priority, as_json=json))
    else:
        response, is_chained = connection.run(_infer(settings, model, inputs or [], text, ttl, priority))
        _show(response, is_chained=is_chained, as_json=json)


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"{name} cannot be read: {exc}"
        raise ConfigurationError(msg) from exc


async def _infer(
    settings: HeadraceSettings, model: str, inputs: list[str], text: str, ttl: float, priority: Priority
) -> tuple[Response, bool]:
    """The answer, and whether it came out of several requests."""
    spec, arrays, parameters = await _question(settings, model, inputs, text)
    async with _client() as client:
        response = await client.infer(
            str(spec.key), arrays, parameters=parameters, ttl_seconds=ttl, priority=priority, raise_on_error=False
        )
    return response, _is_chained(spec)


async def _stream(
    settings: HeadraceSettings,
    model: str,
    inputs: list[str],
    text: str,
    ttl: float,
    priority: Priority,
    *,
    as_json: bool,
) -> None:
    spec, arrays, parameters = await _question(settings, model, inputs, text)
    async with _client() as client:
        try:
            async for part in client.stream(
                str(spec.key), arrays, parameters=parameters, ttl_seconds=ttl, priority=priority
            ):
                _show_part(part, is_chained=_is_chained(spec), as_json=as_json)
        except DeadlineExceeded as exc:
            raise _not_ready(exc) from exc


async def _question(
    settings: HeadraceSettings, model: str, inputs: list[str], text: str
) -> tuple[ModelSpec | PipelineSpec, Any, Any]:
    """Who is asked, the inputs and the parameters."""
    from deploy.cli.connection import open_control
    from deploy.cli.inputs import parse_inputs, parse_json

    async with open_control(settings) as control:
        spec = _spec(await control.registry.snapshot(), model)
    arrays, parameters = parse_json(text, spec) if text else (parse_inputs(inputs, spec), {})
    return spec, arrays, parameters or None


def _is_chained(spec: ModelSpec | PipelineSpec) -> bool:
    from contracts.pipelines import PipelineSpec

    return isinstance(spec, PipelineSpec) and not spec.fused


def _client() -> InferenceClient:
    from contracts.settings import load_settings
    from producer.client import InferenceClient
    from producer.settings import ClientSettings

    return InferenceClient(load_settings(ClientSettings, inbox=_INBOX))


def _spec(state: Any, model: str) -> ModelSpec | PipelineSpec:
    """The model version or pipeline that answers. Raises ModelNotFound with what there is."""
    from contracts.names import ModelVersion
    from contracts.pipelines import PipelineSpec
    from contracts.routing import pin

    name, number = (ModelVersion.parse(model)) if "@" in model else (model, None)
    key = pin(name, number, routes=state.routes, deployed=state.served)
    if key in state.pipelines:
        return PipelineSpec.model_validate(state.pipelines[key].spec)
    if key not in state.models:
        msg = f"{key} is deployed but not registered: apply its fleet file again"
        raise ModelNotFound(msg)
    found: ModelSpec = state.models[key].spec
    return found


def _show(response: Response, *, is_chained: bool, as_json: bool) -> None:
    from deploy.cli.inputs import response_json, response_text
    from deploy.cli.output import print_json

    if as_json:
        print_json(response_json(response))
        if response.error is not None:
            raise typer.Exit({"DEADLINE_EXCEEDED": 3, "INVALID": 2}.get(response.status, 1))
        return
    try:
        response.raise_for_status()
    except DeadlineExceeded as exc:
        raise _not_ready(exc) from exc
    print(response_text(response, is_chained=is_chained))


def _not_ready(exc: DeadlineExceeded) -> NotReady:
    return NotReady(f"{exc}; `headrace status` tells whether a worker is ready, --ttl sets how long to wait")


def _show_part(part: Response, *, is_chained: bool, as_json: bool) -> None:
    from deploy.cli.inputs import outputs_text, receipt_text, response_json
    from deploy.cli.output import print_json

    if as_json:
        print_json({**response_json(part), "index": part.index, "final": part.final})
        return
    text = outputs_text(part)
    if text:
        print(f"part {part.index}\n{text}", flush=True)
    if part.final:
        print(receipt_text(part, is_chained=is_chained))
