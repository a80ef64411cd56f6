"""`headrace dead`: requests that could not be answered by a result, and what may be done about them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import AsJson, Data

if TYPE_CHECKING:
    from contracts.dead_letters import DeadLetter
    from contracts.settings import HeadraceSettings

dead = typer.Typer(
    help="Look at requests that were put aside, send them again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_SHORT = 60

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, without a version.")]
ByReason = Annotated[str, typer.Option("--reason", metavar="REASON", help="Only these: poison, invalid or unroutable.")]
Since = Annotated[
    str, typer.Option("--since", metavar="WHEN", help="Only those put aside since then: 30m, 2h, 7d, or an ISO time.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def _now_ms() -> int:
    from contracts.clock import SystemClock

    return SystemClock().unix_ms()


@dead.command("list")
def list_letters(
    model: Model,
    *,
    reason: ByReason = "",
    since: Since = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show the newest N.")] = 50,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """List a model's dead letters, the newest last."""
    from deploy.cli import connection
    from deploy.cli.letters import check_reason, letter_json, moment_text
    from deploy.cli.output import console, print_json, table

    letters = connection.run(_read(connection.load(data), model, check_reason(reason), since))
    shown = letters[-limit:]
    if json:
        print_json({"model": model, "found": len(letters), "letters": [letter_json(letter) for letter in shown]})
        return
    if not letters:
        print(f"{model} has no dead letters{' like that' if reason or since else ''}.")
        return
    rows = [
        (
            letter.offset,
            moment_text(letter.time_ms),
            letter.reason + (f" (redriven {letter.redriven}×)" if letter.redriven else ""),
            letter.request_id or "—",
            letter.model.rpartition("@")[2] or "—",
            letter.message if len(letter.message) <= _SHORT else letter.message[: _SHORT - 1] + "…",
        )
        for letter in shown
    ]
    console().print(table(">offset", "when", "reason", "request", "version", "message", rows=rows))
    counts = ", ".join(f"{count} {name}" for name, count in Counter(letter.reason for letter in letters).items())
    print(f"{len(letters)} dead letters ({counts})" + (f", the newest {limit} shown" if len(letters) > limit else ""))


@dead.command("show")
def show(
    model: Model,
    which: Annotated[str, typer.Argument(metavar="OFFSET|ID", help="A letter's offset, or its request's id.")],
    *,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Show why a dead letter was put aside, and what was asked."""
    from deploy.cli import connection
    from deploy.cli.letters import letter_json, letter_text
    from deploy.cli.output import print_json

    letters = connection.run(_read(connection.load(data), model, "", ""))
    found = _find(letters, which, model)
    if json:
        print_json(letter_json(found, with_body=True))
    else:
        print(letter_text(found))


@dead.command("replay")
def replay(  # noqa: PLR0913 - its options
    model: Model,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…]", help="Offsets or request ids; without any, all letters.")
    ] = None,
    *,
    to_version: Annotated[
        int | None, typer.Option("--to-version", metavar="V", min=1, help="Ask this version instead.")
    ] = None,
    reason: ByReason = "",
    since: Since = "",
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="N", min=0.001, help="Send at most N a second.")
    ] = None,
    ttl: Annotated[
        float | None, typer.Option("--ttl", metavar="SECONDS", min=0.001, help="Time to live. [default: as before]")
    ] = None,
    dry_run: DryRun = False,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Send dead letters again, each request once.

    Under its own id, with a new time to live and count of attempts.

    The letters stay where they are. Responses go where the request wanted them; a caller who still waits gets one.
    """
    from deploy.cli import connection
    from deploy.cli.letters import check_reason

    settings = connection.load(data)
    ttl_ms = None if ttl is None else max(1, round(ttl * 1000))
    wanted = (ids or [], check_reason(reason), since)
    done = connection.run(_replay(settings, model, wanted, to_version, (rate, ttl_ms), is_dry=dry_run))
    _tell_replay(done, is_dry=dry_run, as_json=json)


@dead.command("purge")
def purge(
    model: Model,
    *,
    before: Annotated[
        str, typer.Option("--before", metavar="WHEN", help="Only those put aside before then: 7d, or an ISO time.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Delete dead letters for good."""
    import sys

    from deploy.cli import connection
    from deploy.cli.output import print_json

    settings = connection.load(data)
    count, until = connection.run(_count_until(settings, model, before))
    if count and not dry_run:
        if not yes and sys.stdin.isatty() and not typer.confirm(f"Delete {count} dead letters of {model} for good?"):
            raise typer.Exit(1)
        connection.run(_delete(settings, model, until))
    if json:
        print_json({"model": model, "deleted": 0 if dry_run else count, "would_delete": count, "before_offset": until})
    else:
        print(f"{count} dead letters of {model} {'would be' if dry_run else 'were'} deleted.")


async def _read(settings: HeadraceSettings, model: str, reason: str, since: str) -> list[DeadLetter]:
    from deploy.cli.letters import open_box, parse_moment

    since_ms = parse_moment(since, _now_ms()) if since else None
    async with open_box(settings.kafka, model) as box:
        return [letter async for letter in box.letters(since_ms) if reason in ("", letter.reason)]


def _find(letters: list[DeadLetter], which: str, model: str) -> DeadLetter:
    """The newest letter with that id, or the one at that offset. Raises ConfigurationError."""
    for letter in reversed(letters):
        if which in (letter.request_id, letter.job):
            return letter
    for letter in letters:
        if which == str(letter.offset):
            return letter
    msg = f"{model} has no dead letter {which}: `headrace dead list {model}` shows those there are"
    raise ConfigurationError(msg)


async def _replay(
    settings: HeadraceSettings,
    model: str,
    wanted: tuple[list[str], str, str],
    version: int | None,
    how: tuple[float | None, int | None],
    *,
    is_dry: bool,
) -> dict[str, Any]:
    from contracts.adapters.kafka import Producer
    from deploy.cli.letters import latest_by_id
    from deploy.cli.output import say
    from deploy.cli.redrive import Redriver

    ids, reason, since = wanted
    letters = await _read(settings, model, reason, since)
    chosen = latest_by_id([_find(letters, which, model) for which in ids] if ids else letters)
    producer = Producer(settings.kafka)
    await producer.open()
    try:
        redriver = Redriver(settings.kafka, producer, model, version)
        plan = await redriver.plan(chosen)
        going = [sending for sending in plan if not sending.why_not]
        sent = 0 if is_dry else await redriver.send(going, rate=how[0], ttl_ms=how[1], say=say)
    finally:
        await producer.close()
    return {
        "model": model,
        "letters": len(letters) if not ids else len(ids),
        "requests": len(chosen),
        "sent": sent,
        "would_send": len(going),
        "to": dict(Counter(sending.topic for sending in going)),
        "left": [{"offset": s.letter.offset, "id": s.letter.request_id, "why": s.why_not} for s in plan if s.why_not],
    }


def _tell_replay(done: dict[str, Any], *, is_dry: bool, as_json: bool) -> None:
    from deploy.cli.output import print_json, say

    if as_json:
        print_json(done)
        return
    for left in done["left"]:
        say(f"{left['id'] or 'offset ' + str(left['offset'])} stays: {left['why']}")
    where = ", ".join(f"{count} to {topic}" for topic, count in done["to"].items())
    count = done["would_send"] if is_dry else done["sent"]
    verb = "would be sent again" if is_dry else "sent again"
    print(f"{count} of {done['requests']} requests {verb}{': ' + where if where else ''}.")


async def _count_until(settings: HeadraceSettings, model: str, before: str) -> tuple[int, int]:
    """How many letters a purge would delete, and up to which offset."""
    from deploy.cli.letters import open_box, parse_moment

    moment = parse_moment(before, _now_ms()) if before else None
    async with open_box(settings.kafka, model) as box:
        until = box.end if moment is None else await box.reader.offset_at(box.partition, moment)
        return max(0, until - box.start), until


async def _delete(settings: HeadraceSettings, model: str, until: int) -> None:
    from contracts import topics
    from contracts.adapters.kafka import Admin

    admin = Admin(settings.kafka)
    await admin.open()
    try:
        await admin.delete_records(topics.dead(settings.kafka.prefix, model), {0: until})
    finally:
        await admin.close()
