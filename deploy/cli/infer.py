"""`headrace infer`: requests from the shell, through everything that a program's requests go through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from contracts.errors import ConfigurationError, DeadlineExceeded, ModelNotFound
from contracts.names import Priority
from deploy.cli.errors import NotReady
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.messages import Response
    from contracts.pipelines import PipelineSpec
    from contracts.settings import HeadraceSettings
    from contracts.specs import ModelSpec
    from producer.client import InferenceClient

_IN_FLIGHT = 16
_INBOX = {"name": "cli", "partitions": 16}


def infer(  # noqa: PLR0913 - each is an option
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL[@VERSION]", help="A model or a pipeline; without a version the route decides."),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=@FILE|NAME=JSON",
            help="One input, rows first. Repeatable; of a pattern or of one name several times, rows behind rows.",
        ),
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
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Write the outputs to a file: JSON, a line a request.")
    ] = "",
    per_row: Annotated[bool, typer.Option("--per-row", help="Ask for each row by itself, many at a time.")] = False,
    in_flight: Annotated[
        int | None, typer.Option("--in-flight", metavar="N", min=1, help="With --per-row: how many at a time (16).")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the parts of the answer as they come.")] = False,
    json: AsJson = False,
) -> None:
    """Ask a model or a pipeline, and print what it answers.

    Behind the outputs stands where the time went. JSON inputs have the form of the Open Inference Protocol, or map
    names to nested lists. With --per-row each row is a request, and its answer is printed in its turn.
    """
    from deploy.cli import connection

    if bool(inputs) == bool(input_json):
        msg = "give the inputs either as --input NAME=VALUE (once for each) or as --input-json FILE"
        raise ConfigurationError(msg)
    if stream and (per_row or output):
        msg = "--stream prints one answer as it comes; leave out --per-row and --output"
        raise ConfigurationError(msg)
    if in_flight is not None and not per_row:
        msg = "--in-flight is about the requests of --per-row; without it there is one"
        raise ConfigurationError(msg)
    text = _read(input_json) if input_json else ""
    asking = _Asking(connection.load(data), model, inputs or [], text, ttl, priority)
    if stream:
        connection.run(_stream(asking, as_json=json))
    elif per_row:
        connection.run(_rows(asking, in_flight or _IN_FLIGHT, output=output, as_json=json))
    else:
        _one(asking, output=output, as_json=json)


class _Asking(NamedTuple):
    """What was typed."""

    settings: HeadraceSettings
    model: str
    inputs: list[str]
    text: str
    ttl: float
    priority: Priority


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"{name} cannot be read: {exc}"
        raise ConfigurationError(msg) from exc


def _one(asking: _Asking, *, output: str, as_json: bool) -> None:
    from deploy.cli import connection
    from deploy.cli.outputs_file import OutputsFile

    with OutputsFile(output) as file:
        response, is_chained = connection.run(_infer(asking))
        file.add(response)
    _show(response, is_chained=is_chained, as_json=as_json)


async def _infer(asking: _Asking) -> tuple[Response, bool]:
    """The answer, and whether it came out of several requests."""
    spec, arrays, parameters = await _question(asking)
    async with _client() as client:
        response = await client.infer(
            str(spec.key),
            arrays,
            parameters=parameters,
            ttl_seconds=asking.ttl,
            priority=asking.priority,
            raise_on_error=False,
        )
    return response, _is_chained(spec)


async def _rows(asking: _Asking, in_flight: int, *, output: str, as_json: bool) -> None:
    from deploy.cli.per_row import Sending, ask_rows, rows_of

    spec, arrays, parameters = await _question(asking)
    rows, sending = rows_of(arrays), Sending(parameters, asking.ttl, asking.priority, in_flight)
    async with _client() as client:
        await ask_rows(client, spec.key, rows, sending, output=output, as_json=as_json)


async def _stream(asking: _Asking, *, as_json: bool) -> None:
    spec, arrays, parameters = await _question(asking)
    async with _client() as client:
        try:
            async for part in client.stream(
                str(spec.key), arrays, parameters=parameters, ttl_seconds=asking.ttl, priority=asking.priority
            ):
                _show_part(part, is_chained=_is_chained(spec), as_json=as_json)
        except DeadlineExceeded as exc:
            raise _not_ready(exc) from exc


async def _question(asking: _Asking) -> tuple[ModelSpec | PipelineSpec, Any, Any]:
    """Who is asked, the inputs and the parameters."""
    from deploy.cli.connection import open_control
    from deploy.cli.inputs import parse_inputs, parse_json

    async with open_control(asking.settings) as control:
        spec = _spec(await control.registry.snapshot(), asking.model)
    arrays, parameters = parse_json(asking.text, spec) if asking.text else (parse_inputs(asking.inputs, spec), {})
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
