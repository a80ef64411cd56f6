"""A sequence: requests that a model with a memory answers one after the other.

All of them go to one partition of one model version, chosen at the first step, so that one worker has them in order and
keeps the state between them.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NamedTuple, Self

from contracts.errors import InvalidRequest
from contracts.messages import Parameters, Response, SequenceStep, Status
from producer.admission import check_request_id
from producer.plan import Inputs, ModelPlan


class Stepping(NamedTuple):
    """The part of the client that a sequence needs."""

    find_plan: Callable[[], Awaitable[ModelPlan]]
    encode: Callable[[ModelPlan, Inputs, Parameters | None], Awaitable[bytes]]
    ask: Callable[[ModelPlan, bytes, float | None, SequenceStep], Awaitable[Response]]
    give_up: Callable[[str], None]


class Sequence:
    """One sequence. Await each step before the next; leave the context to free the model's state."""

    def __init__(self, stepping: Stepping, name: str | None) -> None:
        self._stepping = stepping
        self._is_own = name is None
        self.id = secrets.token_hex(16) if name is None else check_request_id(name)
        self._plan: ModelPlan | None = None
        self._is_running = False

    def __repr__(self) -> str:
        return f"<Sequence {self.id} {'running' if self._is_running else 'not running'}>"

    async def __aenter__(self) -> Self:
        self._plan = await self._stepping.find_plan()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()

    async def infer(
        self,
        inputs: Inputs,
        *,
        start: bool = False,
        end: bool = False,
        parameters: Parameters | None = None,
        ttl_seconds: float | None = None,
        raise_on_error: bool = True,
    ) -> Response:
        """Take the next step. The first one starts the sequence, as does `start`, which forgets what was; `end` makes
        it the last one.

        Raises SequenceLost when the state is gone, and then the next step starts again. A step that ended in another
        error has left the state as it was, unless the client itself gave it up. The rest as `InferenceClient.infer`.
        """
        if self._plan is None:
            msg = "a sequence is used in its context: `async with client.sequence(…) as sequence`"
            raise InvalidRequest(msg)
        body = await self._stepping.encode(self._plan, inputs, parameters)
        step = SequenceStep(self.id, start or not self._is_running, end)
        response = await self._stepping.ask(self._plan, body, ttl_seconds, step)
        if response.status is Status.OK:
            self._is_running = not end
        elif response.status is Status.SEQUENCE_LOST:
            self._is_running = False
        return response.raise_for_status() if raise_on_error else response

    def give_up(self) -> None:
        """Have the worker forget the state; best effort, it does so by itself when the sequence has been idle.

        A sequence under a name of the caller's is left alone: somebody else may go on with it.
        """
        if self._is_running and self._is_own:
            self._stepping.give_up(self.id)
        self._is_running = False
