"""Values that lie in the store and are looked into here: read before a job goes on.

What is read counts against a budget until the job has gone on, which copies what travels further. A store that cannot
be reached is asked again a few times; then, as when a value is gone, the job ends with an error that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from contracts.adapters.blobs import Blobs, ByteBudget
from contracts.errors import ConfigurationError, PayloadLost, TransportError
from contracts.messages import Status
from contracts.names import DEFAULT_TENANT
from contracts.payloads import URL_VARIABLE
from contracts.plans import INPUT, Env, Failure, Plan
from contracts.references import missing
from contracts.tensors import Tensor, check_tensor
from workers.draining.errands import Errands, patiently

log = logging.getLogger(__name__)

_NO_STORE = f"a value lies in a store, and this worker has none to look it up in: set {URL_VARIABLE}"

Then = Callable[[Sequence[Env]], None]
Failed = Callable[[Failure], None]


class Lookups:
    """Reads values for one worker."""

    def __init__(self, blobs: Blobs | None, limit_bytes: int) -> None:
        """At most `limit_bytes` at a time, and no more for one look-up."""
        self._blobs = blobs
        self._limit = limit_bytes
        self._budget = ByteBudget(limit_bytes)
        self._errands = Errands()
        self.stop = self._errands.stop

    def when(
        self, plan: Plan, node: str, envs: Sequence[Mapping[str, Tensor]], tenant: str, then: Then, failed: Failed
    ) -> None:
        """Call back with these values, complete as far as they are looked into at `node`: at once when they are."""
        keys = missing(plan, node, envs)
        if not keys:
            then([dict(env) for env in envs])
            return
        work = self._fetch(keys, node, [dict(env) for env in envs], tenant or DEFAULT_TENANT, then, failed)
        self._errands.run(work, "worker.lookup")

    async def _fetch(
        self, keys: frozenset[str], node: str, envs: list[Env], tenant: str, then: Then, failed: Failed
    ) -> None:
        size = sum(tensor.size for env in envs for key, tensor in env.items() if key in keys and tensor.ref is not None)
        if size > self._limit:
            text = f"values of {size:,} bytes are looked into at once, more than HEADRACE_BLOBS__IN_FLIGHT_BYTES allows"
            failed(Failure(Status.INVALID, text, node))
            return
        await self._budget.take(size)
        try:
            complete = await self._restored(keys, node, envs, tenant)
            if isinstance(complete, Failure):
                failed(complete)
            else:
                then(complete)
        except Exception:  # let through, the job would have no outcome for ever
            log.exception("a job cannot go on behind %s", node)
            failed(Failure(Status.INTERNAL, "the job could not go on with values from the store", node, retryable=True))
        finally:
            self._budget.give(size)

    async def _restored(self, keys: frozenset[str], node: str, envs: list[Env], tenant: str) -> list[Env] | Failure:
        try:
            complete = [await patiently(partial(self._read, keys, env, tenant), "reading a value") for env in envs]
        except PayloadLost as exc:
            if node == INPUT:  # nobody but the caller has put it there
                return Failure(Status.INVALID, str(exc), node)
            return Failure(Status.INTERNAL, str(exc), node, retryable=True)
        except (TransportError, ConfigurationError) as exc:
            return Failure(Status.INTERNAL, str(exc), node, retryable=exc.retryable)
        faults = (check_tensor(env[key]) for env in complete for key in keys if key in env)
        fault = next(filter(None, faults), None)
        return complete if fault is None else Failure(Status.INVALID, fault, node)

    async def _read(self, keys: frozenset[str], env: Env, tenant: str) -> Env:
        if self._blobs is None:
            raise ConfigurationError(_NO_STORE)
        wanted = [key for key in env if key in keys]
        tensors = await self._blobs.restore([env[key] for key in wanted], tenant=tenant)
        return env | dict(zip(wanted, tensors, strict=True))
