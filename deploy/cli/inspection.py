"""`headrace pipeline inspect`: what went into a step of a pipeline lately, and what came out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import ConfigurationError, InvalidRequest
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from contracts.adapters.kafka import Record
    from contracts.adapters.registry import RegistryState
    from contracts.plans import Plan
    from contracts.settings import HeadraceSettings
    from contracts.tensors import Tensor

_SHOWN_ELEMENTS = 24


def inspect(
    name: Annotated[str, typer.Argument(metavar="PIPELINE", help="Name, or name@version.")],
    *,
    step: Annotated[str, typer.Option("--step", "-s", help="A step, as `headrace pipeline graph` names it.")],
    last: Annotated[int, typer.Option("--last", min=1, max=1000, help="How many requests or parts.")] = 5,
    since: Annotated[str, typer.Option("--since", help="How far to look back: 30m, 2h, or a time.")] = "30m",
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Print the tensors that a step was given lately.

    And, where a later step got them, those that it gave.
    """
    from deploy.cli import connection

    connection.run(_inspect(connection.load(data), name, step, last, since, as_json=json))


async def _inspect(settings: HeadraceSettings, name: str, step: str, last: int, since: str, *, as_json: bool) -> None:
    from contracts import topics
    from contracts.clock import SystemClock
    from deploy.cli.connection import open_control
    from deploy.cli.history import scan
    from deploy.cli.letters import parse_moment
    from deploy.cli.output import print_json, say

    async with open_control(settings) as control:
        plan = chained_plan(await control.registry.snapshot(), name)
    if step not in plan.by_name:
        msg = f"{plan.pipeline} has no step {step!r}; it has {', '.join(node.name for node in plan.nodes)}"
        raise ConfigurationError(msg)
    prefix, pipeline = settings.kafka.prefix, str(plan.pipeline).encode()

    def wanted(topic: str) -> bool:  # of any version of a model: earlier plans may have pinned another one
        key = topics.parse_requests(prefix, topic)
        return topic == topics.joins(prefix, *plan.pipeline) or (
            key is not None and key.model in {model.model for model in plan.models}
        )

    found = await scan(
        settings.kafka,
        wanted,
        lambda _, headers: headers.get("pl") == pipeline,
        since_ms=parse_moment(since, SystemClock().unix_ms()),
    )
    if found.is_cut:
        say(f"only {found.seen} records were looked at, and there are more: say --since with a shorter time")
    shown = describe(found.records, step, plan, last)
    if as_json:
        print_json({"pipeline": str(plan.pipeline), "step": step, "records": shown})
    else:
        print(
            render(shown)
            or f"Nothing went into {step} of {plan.pipeline} with --since {since}; a longer time looks further back."
        )


def chained_plan(state: RegistryState, name: str) -> Plan:
    """The plan of a pipeline whose steps leave records. Raises ConfigurationError."""
    from contracts.adapters.compiled import compiled
    from contracts.names import ModelVersion
    from contracts.routing import pin

    model, version = ModelVersion.parse(name) if "@" in name else (name, None)
    if not any(key.model == model for key in state.pipelines):
        have = ", ".join(map(str, sorted(state.pipelines))) or "none"
        msg = f"there is no pipeline {name}; registered: {have}"
        raise ConfigurationError(msg)
    key = pin(model, version, routes=state.routes, deployed=state.pipelines)
    if state.pipelines[key].is_fused:
        msg = f"{key} is fused: its steps run in the memory of one worker and leave no records to look at"
        raise ConfigurationError(msg)
    return compiled(state.pipelines[key], state)


def describe(records: Iterable[Record], step: str, plan: Plan, last: int) -> list[dict[str, Any]]:
    """The last records for a step, each with the results that later records tell of, as plain data."""
    asked: dict[tuple[str, str, str], dict[str, Any]] = {}
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        try:
            _read(record, step, plan, asked, results)
        except InvalidRequest:
            continue  # not ours to complain about: workers answered it
    shown = list(asked.values())[-last:]
    for one in shown:
        one["outputs"] = results.get((one["job"], one["branch"]))
    return shown


def _read(
    record: Record,
    step: str,
    plan: Plan,
    asked: dict[tuple[str, str, str], dict[str, Any]],
    results: dict[tuple[str, str], dict[str, Any]],
) -> None:
    from contracts.codec import decode_headers, decode_request
    from contracts.parts import PartKind, decode_part, decode_part_headers
    from contracts.plans import format_branch

    texts = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    if "kind" in texts:
        part = decode_part_headers(record.headers)
        if part.kind is PartKind.MARKER:
            return
        body = decode_part(record.value)
        hop, ran, known = part.hop, body.ran, {tensor.name: tensor for tensor in body.env}
        given: Mapping[str, Tensor] = known
        what = f"{part.kind.value} from {part.source}"
    else:
        headers, request = decode_headers(record.headers), decode_request(record.value)
        if headers.hop is None:
            return
        hop, ran = headers.hop, request.ran
        given = {tensor.name: tensor for tensor in request.inputs}
        known = {tensor.name: tensor for tensor in request.carried} | _bound(plan, hop.step, given)
        what = "request"
    branch = format_branch(hop.branch)
    if hop.step == step:
        asked[hop.job, branch, what] = {
            "job": hop.job,
            "branch": branch,
            "what": what,
            "time_unix_ms": record.timestamp,
            "where": f"{record.topic}/{record.partition}/{record.offset}",
            "inputs": {name: shown_tensor(tensor) for name, tensor in given.items()},
        }
    own = {name: tensor for name, tensor in known.items() if name.rpartition(".")[0] == step}
    if ran is not None and ran.step == step and own:
        found = {name.rpartition(".")[2]: shown_tensor(tensor) for name, tensor in own.items()}
        results.setdefault((hop.job, format_branch(ran.branch)), {}).update(found)


def _bound(plan: Plan, step: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A request's inputs by the names that they had as outputs of earlier steps, where that is certain."""
    from contracts.plans import Source

    node = plan.by_name.get(step)
    bindings = node.members[0].bindings if node is not None and node.members else ()
    return {
        binding.alternatives[0].key: inputs[binding.name]
        for binding in bindings
        if binding.name in inputs and len(binding.alternatives) == 1 and isinstance(binding.alternatives[0], Source)
    }


def shown_tensor(tensor: Tensor) -> dict[str, Any]:
    """A tensor as plain data; of a large one, its beginning, or how many bytes of it lie in the store."""
    try:
        elements = tensor.to_numpy().ravel()
    except InvalidRequest:  # its content was left elsewhere, or it contradicts itself
        elements = None
    found: dict[str, Any] = {"datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.ref is not None:
        found["stored_bytes"] = tensor.ref.size
    if elements is not None:
        values = elements[:_SHOWN_ELEMENTS].tolist()
        found["data"] = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
        found["is_cut"] = len(elements) > _SHOWN_ELEMENTS
    return found


def render(shown: Iterable[dict[str, Any]]) -> str:
    """The records for people."""
    blocks = []
    for one in shown:
        place = f"[{one['branch']}]" if one["branch"] else ""
        lines = [f"{one['job']}{place}  {one['what']}  {one['where']}"]
        lines += [f"  in   {_line(name, tensor)}" for name, tensor in one["inputs"].items()]
        lines += [f"  out  {_line(name, tensor)}" for name, tensor in (one["outputs"] or {}).items()]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def _line(name: str, tensor: dict[str, Any]) -> str:
    values = ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in tensor.get("data", []))
    if "stored_bytes" in tensor:
        values = f"{tensor['stored_bytes']:,} bytes in the store"
    return f"{name}  {tensor['datatype']} {tensor['shape']}  {values}{', …' if tensor.get('is_cut') else ''}"
