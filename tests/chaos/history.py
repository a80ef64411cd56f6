"""What the log says of the answers, since callers cannot tell: their client drops whatever comes second.

At least once means that a request may be answered again when somebody has died or a partition has changed hands; then
another worker says the same once more. So a second answer is one too many when it says something else than the first,
or when it comes from a worker that has answered already and had no cause to run the request again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from contracts import topics
from contracts.adapters.kafka import Record
from contracts.codec import decode_response
from contracts.names import ModelVersion
from contracts.settings import KafkaSettings
from deploy.cli.history import scan
from deploy.cli.lag import Lags
from tests.helpers import wait_until

_SETTLED_SECONDS = 60.0
_LIMIT = 10_000_000


class Final(NamedTuple):
    """A terminal response in the log. `says`: its status and outputs, in short; `whole`: all of the record."""

    request: str
    worker: str
    says: bytes
    whole: bytes


def once(_request: str) -> int:
    """How often a worker runs a request, as long as nothing brings it back to that worker."""
    return 1


def doubled(finals: Iterable[Final], runs: Callable[[str], int] = once) -> dict[str, str]:
    """Requests with an answer too many, and why it is. `runs` says how often one worker may have answered a request."""
    said: dict[str, bytes] = {}
    given: Counter[tuple[str, str]] = Counter()
    wrong: dict[str, str] = {}
    for final in finals:
        given[final.request, final.worker] += 1
        if said.setdefault(final.request, final.says) != final.says:
            wrong[final.request] = "was answered in two ways"
        elif given[final.request, final.worker] > runs(final.request):
            wrong.setdefault(final.request, f"was answered again by {final.worker}")
    return wrong


def sent_once(finals: Iterable[Final]) -> list[Final]:
    """Without those of which a producer that was replaced has sent the very record again; a second run takes another
    time, which is in its receipt.
    """
    return list({(final.request, final.whole): final for final in finals}.values())


async def read_finals(kafka: KafkaSettings, inbox: str, since_ms: int) -> list[Final]:
    """All terminal responses that an inbox got from some time on."""
    finals: list[Final] = []

    def note(record: Record, _: object) -> bool:
        response, _token = decode_response(record.headers, record.value)
        if response.final:
            said = hashlib.blake2b(response.status.encode(), digest_size=16)
            for tensor in response.outputs:
                said.update(f"{tensor.name} {tensor.datatype} {tensor.shape}".encode())
                said.update(tensor.data)
            whole = hashlib.blake2b(record.value or b"", digest_size=16).digest()
            finals.append(Final(response.id, response.receipt.worker, said.digest(), whole))
        return False  # it need not be kept

    topic = topics.replies(kafka.prefix, inbox)
    found = await scan(kafka, lambda name: name == topic, note, since_ms=since_ms, limit=_LIMIT)
    assert not found.is_cut, f"{topic} could not be read to its end"
    return finals


async def settled(kafka: KafkaSettings, key: ModelVersion, partitions: int) -> None:
    """Return when all requests are committed, and nothing is left that could be answered again."""
    lags = Lags(kafka)

    async def nothing_left() -> bool:
        return set((await lags.read({key: partitions})).values()) == {0}

    try:
        await wait_until(nothing_left, f"requests to {key} are not committed", timeout=_SETTLED_SECONDS)
    finally:
        await lags.close()


def judge(name: str, finals: list[Final], answered: int, runs: Callable[[str], int] = once) -> int:
    """How many requests have an answer too many; a few are printed. All that callers were answered must be there."""
    known = len({final.request for final in finals})
    assert known >= answered, f"{name}: {answered} were answered, but the log knows {known} of them"
    wrong = doubled(finals, runs)
    for request, why in list(wrong.items())[:3]:
        print(f"{name}: {request} {why}")
    return len(wrong)
