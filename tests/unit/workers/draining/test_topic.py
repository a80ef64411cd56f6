"""A topic of which nothing is drained."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contracts.errors import TransportError
from workers.draining.settings import DrainGroup
from workers.draining.topic import READ_BACK_SECONDS, TopicDrain


class Closed:
    """A reader that was never opened, such as that of a lane that nobody asked for."""

    async def committed(self, _: Any) -> Any:
        raise TransportError("the reader is not open")


@pytest.mark.looptime
async def test_what_was_never_drained_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    reader: Any = Closed()
    drain = TopicDrain("t", reader, settings=DrainGroup(), may_take=lambda: True)
    committing = asyncio.ensure_future(drain.commit_loop())  # noqa: TID251 - cancelled below
    await asyncio.sleep(READ_BACK_SECONDS + 1)
    await drain.quiet()
    await asyncio.sleep(1)
    assert caplog.text == ""
    assert not committing.done()
    committing.cancel()
