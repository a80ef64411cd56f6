"""`headrace up`: the whole of Headrace on this machine, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from contracts.errors import ConfigurationError
from deploy.cli.options import Fleet, Kafka, Redis

if TYPE_CHECKING:
    from deploy.cli.repository import FleetFile
    from deploy.embedded.servers import KafkaChoice
    from deploy.embedded.stack import EmbeddedStack

_READY_SECONDS = 120.0  # as long as a worker may take to load its model
_KAFKAS = ("embedded", "home", "docker")
_INTERRUPTED = 130


def up(
    *,
    fleet: Fleet = None,
    kafka: Kafka = None,
    redis: Redis = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Where everything is kept. [default: ~/.local/share/headrace]"),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=16, help="Node agents to start, to try out several.")] = 1,
) -> None:
    """Start a whole stack on this machine, and stay until Ctrl-C.

    That is a broker, Redis, the scheduler, a node agent and the workers that it starts.

    What is stored stays in the data folder, and the next `up` goes on with it. Other commands find the running stack by
    themselves.
    """
    from deploy.cli import connection
    from deploy.cli.repository import read_fleet
    from deploy.embedded.connection import default_data_folder
    from deploy.embedded.stack import EmbeddedStack

    wanted = None if fleet is None else read_fleet(fleet)
    folder = data.expanduser() if data else default_data_folder(os.environ)
    stack = EmbeddedStack(folder, kafka=check_kafka(kafka), redis=redis, agents=nodes, say=_say)
    raise typer.Exit(connection.run(_up(stack, wanted)))


def check_kafka(kafka: str | None) -> KafkaChoice | None:
    """The choice that `--kafka` names. Raises ConfigurationError."""
    if kafka is not None and kafka not in _KAFKAS:
        msg = f"--kafka {kafka} is unknown: choose {', '.join(_KAFKAS)}"
        raise ConfigurationError(msg)
    return cast("KafkaChoice | None", kafka)


def _say(line: str) -> None:
    print(line, flush=True)


async def _up(stack: EmbeddedStack, fleet: FleetFile | None) -> int:
    """Serve until a signal; a second one while stopping stops at once, a third one leaves the rest to the guardian."""
    import asyncio

    loop = asyncio.get_running_loop()
    under_way = [loop.create_task(_serve(stack, fleet), name="up")]
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals > 2:  # noqa: PLR2004 - as in the docstring
            os._exit(_INTERRUPTED)
        under_way[-1].cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        await under_way[0]
    except asyncio.CancelledError:
        _say("Stopping: workers finish what they have taken (Ctrl-C again stops at once).")
    finally:
        under_way.append(loop.create_task(stack.stop(), name="stop"))
        try:
            await under_way[1]
        except asyncio.CancelledError:
            await stack.kill_all()
            _say("Stopped at once.")
    if signals > 1:
        return _INTERRUPTED
    _say("Stopped.")
    return 0


async def _serve(stack: EmbeddedStack, fleet: FleetFile | None) -> None:
    started = time.monotonic()
    await stack.start()
    nodes = f"{len(stack.processes) - 1} node agent{'s' if len(stack.processes) > 2 else ''}"  # noqa: PLR2004
    _say(f"The scheduler and {nodes} run; their logs are in {stack.data / 'logs'}")
    example = await _deploy(stack, fleet)
    data = "" if is_default(stack.data) else f" --data {stack.data}"
    lines = [f"Ready after {time.monotonic() - started:.1f} s. In another terminal, for example:", ""]
    lines += [f"  headrace {command}{data}" for command in ["status", *example]]
    lines += ["", f'  eval "$(headrace env{data})"    # so that your own programs find it', ""]
    lines += ["Ctrl-C stops everything. What is stored stays in " + str(stack.data)]
    _say("\n".join(lines))
    await stack.wait()


def is_default(folder: Path) -> bool:
    """Whether other commands look for a stack in this folder by themselves."""
    from deploy.embedded.connection import default_data_folder

    return folder == default_data_folder(os.environ).absolute()


async def _deploy(stack: EmbeddedStack, fleet: FleetFile | None) -> list[str]:
    """Apply the fleet, or wait for what an earlier run left; returns commands that are worth trying next."""
    from contracts.names import ModelVersion
    from deploy.cli.apply import carry_out, plan_changes
    from deploy.cli.connection import open_control
    from deploy.cli.readiness import await_ready
    from scheduler.view import describe

    async with open_control(stack.settings()) as control:
        if fleet is not None:
            # No worker runs yet that could hold other files, so on this machine new ones may take their place.
            found = await plan_changes(control.registry, fleet, replace=True)
            await carry_out(control.registry, fleet, found)
        seen = await control.look()
        known = describe(seen.snapshot, seen.demand)["deployments"]
        names = [deployment["name"] for deployment in known if deployment["is_deployed"]]
        if not names:
            return ["apply -f fleet.yaml"]
        await await_ready(control, names, _READY_SECONDS, say=_say)
        model = await control.registry.get_model(ModelVersion.parse(names[-1]))
        return [f"infer {names[-1]} --input {model.spec.inputs[0].name}=@rows.npy"] if model else []
