"""`headrace demo`: the main job on real images, with a worker killed in mid-run."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import typer

from deploy.cli.options import AsJson, Kafka, Redis

if TYPE_CHECKING:
    from deploy.demo.job import Demo, Outcome

_INTERRUPTED = 130


def demo(*, kafka: Kafka = None, redis: Redis = None, json: AsJson = False) -> None:
    """Classify 1,797 images with two models, kill a worker in mid-run.

    On a stack of its own, which is gone afterwards.

    Exit status 0 only if every request was answered exactly once, before and after the SIGKILL, and rightly.
    """
    import msgspec

    from deploy.cli import connection
    from deploy.cli.output import print_json
    from deploy.cli.up import check_kafka
    from deploy.demo.job import Demo
    from deploy.demo.screen import TerminalScreen
    from deploy.demo.verdict import verdict

    screen = TerminalScreen(is_quiet=json)
    outcome = connection.run(_until_signal(Demo(screen, kafka=check_kafka(kafka), redis=redis)))
    if outcome is None:
        screen.say("Interrupted; everything is stopped.")
        raise typer.Exit(_INTERRUPTED)
    checks = verdict(outcome)
    if json:
        print_json(msgspec.to_builtins({"outcome": outcome, "checks": checks}))
    else:
        screen.verdict(checks, outcome)
    raise typer.Exit(0 if all(check.holds for check in checks) else 1)


async def _until_signal(demo: Demo) -> Outcome | None:
    """Run it; a signal stops everything in order and gives None."""
    import asyncio

    loop = asyncio.get_running_loop()
    running = loop.create_task(demo.run(), name="demo")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, running.cancel)
    try:
        return await running
    except asyncio.CancelledError:
        return None
