"""Work beside the draining, such as reads and writes of a store: tasks that end together, and what they try again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from contracts.errors import TransportError

log = logging.getLogger(__name__)

_T = TypeVar("_T")

PAUSES_SECONDS = (0.2, 1.0, 3.0)
"""Between attempts."""


class Errands:
    """The tasks under way for one owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[None, None, None], name: str, ended: Callable[[], None] | None = None) -> None:
        """Begin; `ended` is called however it ends."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if ended is not None:
            task.add_done_callback(lambda _: ended())

    async def stop(self) -> None:
        """Give up what is not done; the next owner of the records behind it does them again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def patiently(attempt: Callable[[], Awaitable[_T]], what: str) -> _T:
    """The result of an attempt, made again after each pause. Raises TransportError when none gets through."""
    for pause in PAUSES_SECONDS:
        try:
            return await attempt()
        except TransportError as exc:
            log.info("%s again in %g s: %s", what, pause, exc)
            await asyncio.sleep(pause)
    return await attempt()
