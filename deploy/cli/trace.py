"""`headrace trace`: where the time of one request went, across all topics that it passed through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from rich.console import RenderableType

    from contracts.adapters.kafka import Record
    from contracts.settings import HeadraceSettings

_KINDS = ("requests", "joins", "retry", "dead", "replies")


def trace(
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST-ID", help="As the response or the caller's log has it.")
    ],
    *,
    since: Annotated[str, typer.Option("--since", help="How far to look back: 30m, 2h, or a time.")] = "30m",
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Show where the time of a request or a pipeline's job went.

    Queued, batched and computed for each step. It is put together from the records in the log, so it reaches back as
    far as their retention does, and costs the workers nothing.
    """
    from deploy.cli import connection

    connection.run(_trace(connection.load(data), request_id, since, as_json=json))


async def _trace(settings: HeadraceSettings, request_id: str, since: str, *, as_json: bool) -> None:
    from contracts.clock import SystemClock
    from deploy.cli.history import scan
    from deploy.cli.letters import parse_moment
    from deploy.cli.output import console, print_json, say
    from deploy.cli.timeline import describe, lines_of

    prefix, wanted = settings.kafka.prefix, request_id.encode()
    heads = tuple(f"{prefix}.{kind}." for kind in _KINDS)

    def pick(_: Record, headers: dict[str, bytes]) -> bool:
        return wanted in (headers.get("job"), headers.get("id"))

    found = await scan(
        settings.kafka,
        lambda topic: topic.startswith(heads),
        pick,
        since_ms=parse_moment(since, SystemClock().unix_ms()),
    )
    if found.is_cut:
        say(f"only {found.seen} records were looked at, and there are more: say --since with a shorter time")
    if not found.records:
        msg = f"no record of {request_id} among {found.seen} since {since}; --since looks further back"
        raise ConfigurationError(msg)
    timeline = describe(request_id, lines_of(found.records, prefix))
    if as_json:
        print_json(timeline)
    else:
        console().print(render(timeline))


def render(timeline: dict[str, Any]) -> RenderableType:
    """A timeline for people."""
    from rich.console import Group

    from deploy.cli.output import table

    what = f"job of {timeline['pipeline']}, plan {timeline['plan']}" if timeline["pipeline"] else "request"
    took = f"{timeline['status']} after {timeline['took_ms']} ms" if timeline["status"] else "no response found"
    heads = ["step", ">asked", ">queued", ">batched", ">computed", ">rows", ">ended", "device", "worker"]
    events = [(_name(e), f"+{e['at_ms']}", e["kind"], e["where"], e["detail"]) for e in timeline["events"]]
    steps = [_step(step) for step in timeline["steps"]]
    first = 0 if any(row[0] for row in [*steps, *events]) else 1  # what has no steps gets no column for their names
    return Group(
        f"{timeline['id']}: {what}: {took}",
        *([table(*heads[first:], rows=[row[first:] for row in steps])] if steps else []),
        table(*["step", ">ms", "record", "where", "detail"][first:], rows=[row[first:] for row in events]),
    )


def _step(step: dict[str, Any]) -> tuple[object, ...]:
    asked = f"+{step['asked_ms']}" + (f" ({step['asked']} times)" if step["asked"] > 1 else "")
    ended = "" if step["ended_ms"] is None else f"+{step['ended_ms']}"
    times = ["" if step[name] is None else f"{step[name]:.1f}" for name in ("queued_ms", "batched_ms", "computed_ms")]
    rows = "" if step["batch_rows"] is None else step["batch_rows"]
    return _name(step), asked, *times, rows, ended, step["device"], step["worker"]


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['step']}[{entry['branch']}]" if entry["branch"] else str(entry["step"])
