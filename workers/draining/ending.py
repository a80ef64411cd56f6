"""How the work under a lease ends: taken back or lost by the server, or given back at SIGTERM."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection

from contracts.errors import HeadraceError, LeaseLost
from contracts.service import Deadline, Loops
from workers.draining.publisher import Publisher
from workers.draining.tenure import Tenure
from workers.draining.topic import TopicDrain

log = logging.getLogger(__name__)

_LOST_GRACE_SECONDS = 2.0  # what was sent before the lease was lost may still be acknowledged and committed
_LAST_COMMIT_SECONDS = 1.0


async def until_lease_ends(loops: Loops) -> None:
    """Return when the lease is over, which is how a worker's life ends; raise anything else that ends a loop."""
    try:
        await loops.wait()
    except LeaseLost as exc:
        log.info("%s", exc)


async def wind_down(
    quiet: Awaitable[object],
    drains: Collection[TopicDrain],
    tenure: Tenure,
    publisher: Publisher,
    *,
    reason: str,
    deadline: Deadline,
) -> None:
    """Await that nothing new is taken, finish what runs, commit, and give back partitions and lease.

    What is left when the deadline comes, or when that fails, is done again by whoever gets the partitions.
    """
    try:
        await quiet
        if tenure.is_over:
            await publisher.drain(min(_LOST_GRACE_SECONDS, deadline.remaining))
            await asyncio.gather(*(drain.commit(_LAST_COMMIT_SECONDS, final=True) for drain in drains))
        else:
            async with asyncio.timeout(deadline.remaining):
                await tenure.give_all(reason)
    except (HeadraceError, TimeoutError) as exc:
        log.warning("stopping with work unfinished, somebody else will do it: %r", exc)
