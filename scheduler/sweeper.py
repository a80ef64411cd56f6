"""Deletes payloads that nobody can refer to any more, when this scheduler leads.

A sweep lists the whole store: so it is done seldom, by one process, and by none where the store has rules of its own
for old objects. It disturbs nobody: an object that is in use again is young again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from contracts.adapters.blobs import Blobs
from contracts.errors import ConfigurationError, TransportError
from contracts.settings import BlobSettings

log = logging.getLogger(__name__)

FIRST_SECONDS = 60.0
"""After the start, or sooner when sweeps are more frequent: nobody waits for the first one."""


async def sweep_loop(settings: BlobSettings, is_leading: Callable[[], bool]) -> None:
    """Sweep while this process leads; never ends by itself."""
    blobs = Blobs.from_settings(settings) if settings.sweep_seconds else None
    if blobs is None:
        await asyncio.Event().wait()
        return
    try:
        pause = min(FIRST_SECONDS, settings.sweep_seconds)
        while True:
            await asyncio.sleep(pause)
            pause = settings.sweep_seconds
            if is_leading():
                await _sweep(blobs)
    finally:
        blobs.close()


async def _sweep(blobs: Blobs) -> None:
    try:
        found = await blobs.sweep()
    except (TransportError, ConfigurationError) as exc:
        log.warning("old payloads are still there: %s", exc)
    else:
        log.info("swept %d old payloads of %d bytes; %d stay", *found)
