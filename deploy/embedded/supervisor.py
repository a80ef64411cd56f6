"""Keeps the processes of a stack running: one that ends by itself is started again.

The first death is answered at once, since it was probably an accident; the next ones wait longer and longer, so that a
process which cannot run does not keep a laptop busy. A process that then ran for a while starts over with a clean
record. Whether one has ended is looked at twenty times a second: that is one system call for each, and it works alike
for what was started by this object and by a thread pool.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from contracts.clock import Clock, SystemClock
from contracts.errors import TransportError
from deploy.embedded.processes import Child

LONGEST_DELAY_SECONDS = 10.0
_FIRST_DELAY_SECONDS = 0.25
_FORGIVEN_SECONDS = 60.0
_LOOK_SECONDS = 0.05


def restart_delay(deaths: Sequence[float], now: float) -> float:
    """Seconds to wait before the next start, after deaths at these times, the last one just now."""
    recent = sum(1 for death in deaths if now - death < _FORGIVEN_SECONDS)
    if recent <= 1:
        return 0.0
    return min(LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(recent - 2, 16))


class Kept:
    """One child, how to start it again, and when it died."""

    def __init__(self, child: Child, restart: Callable[[], None]) -> None:
        self.child = child
        self.restart = restart
        self.deaths: list[float] = []
        self.due: float | None = None


class Supervisor:
    """Watches children; `say` gets one line for the operator about each death and each start."""

    def __init__(self, say: Callable[[str], None], clock: Clock | None = None) -> None:
        self._say = say
        self._clock = clock or SystemClock()
        self._kept: dict[str, Kept] = {}

    def keep(self, child: Child, restart: Callable[[], None] | None = None) -> None:
        """Watch a running child. `restart` starts it again and may block; by default it is spawned."""
        self._kept[child.name] = Kept(child, restart or child.spawn)

    def release(self, child: Child) -> None:
        """Leave a child alone: it is about to be stopped on purpose."""
        self._kept.pop(child.name, None)

    async def watch_loop(self) -> None:
        """Never ends by itself."""
        while True:
            for kept in list(self._kept.values()):
                await self._look_after(kept)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look_after(self, kept: Kept) -> None:
        child, now = kept.child, self._clock.monotonic()
        if child.is_running:
            return
        if kept.due is None:
            kept.deaths = [*(death for death in kept.deaths if now - death < _FORGIVEN_SECONDS), now]
            delay = restart_delay(kept.deaths, now)
            kept.due = now + delay
            when = f"again in {delay:.2g} s" if delay else "again"
            self._say(f"{child.name} ended ({child.end}), starting it {when}{_reason(child)}")
        if now >= kept.due:
            kept.due = None
            _keep_log(child)
            try:
                await _in_thread(kept.restart)
            except (TransportError, OSError) as exc:
                self._say(f"{child.name} could not be started: {exc}")


async def _in_thread(restart: Callable[[], None]) -> None:
    """Run it to its end, also when we are cancelled: whoever stops the children next must find what it started."""
    work = asyncio.get_running_loop().run_in_executor(None, restart)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _reason(child: Child) -> str:
    """The last line that the child wrote, unless it was killed from outside and so has nothing to say about it."""
    if child.end.startswith("SIG"):
        return ""
    with contextlib.suppress(OSError):
        lines = child.log.read_text(errors="replace").strip().splitlines()
        return f"; its last words: {lines[-1].strip()}" if lines else ""
    return ""


def _keep_log(child: Child) -> None:
    """The next start empties the log, and the reason for this one stands there."""
    with contextlib.suppress(OSError):
        child.log.replace(child.log.with_name(f"{child.log.stem}.previous{child.log.suffix}"))
