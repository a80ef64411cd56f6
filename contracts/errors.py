"""Every error that Headrace raises on purpose.

    HeadraceError
    ├── RequestError            a request ended with a terminal status other than OK
    │   ├── InvalidRequest      INVALID
    │   │   └── InvalidRows     some rows of a batch are; said by a model's own code
    │   ├── DeadlineExceeded    DEADLINE_EXCEEDED
    │   ├── Cancelled           CANCELLED
    │   ├── Overloaded          OVERLOADED
    │   ├── PoisonRequest       POISON
    │   ├── SequenceLost        SEQUENCE_LOST
    │   └── InternalError       INTERNAL
    │       └── StreamBroken    a stream cannot be continued as it began; said by the client
    ├── BackendError            a model could not be run
    │   ├── ModelNotFound       nothing of that name and version is registered
    │   └── ModelLoadError      its artefacts could not be loaded
    ├── LeaseLost               the right to a device, a partition or an inbox has ended
    ├── PayloadLost             bytes that a message refers to are not in the store, or are not those
    ├── TransportError          Kafka, Redis or a store could not be reached or refused
    ├── ClientClosed            the client was closed while a caller waited
    └── ConfigurationError      a setting or a spec is wrong

None of them knows a Kafka, Redis or HTTP code: foreign exceptions are translated where the foreign library is called.
`retryable` says whether sending the same request again may succeed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class HeadraceError(Exception):
    """The base of all errors of this package."""

    retryable: ClassVar[bool] = False


class RequestError(HeadraceError):
    """A request ended in a terminal response that carries no result."""


class InvalidRequest(RequestError):
    """The request does not fit its model or the protocol; sending it again cannot help."""


class InvalidRows(InvalidRequest):
    """Rows of a batch do not fit their model: what is wrong with each, by its number in the batch. For a model's own
    code, which so ends the requests that they belong to; the others run again without them.
    """

    def __init__(self, rows: Mapping[int, str]) -> None:
        """`rows` is looked at where the batch is answered: code that names them wrong is told so there."""
        super().__init__(rows)
        self.rows = rows


class DeadlineExceeded(RequestError):
    """The request's time to live ran out before it was answered."""

    retryable = True


class Cancelled(RequestError):
    """The caller withdrew the request before it ran."""


class Overloaded(RequestError):
    """There is no room for the request now."""

    retryable = True


class PoisonRequest(RequestError):
    """The request fails or kills the model by itself; it was put aside in the dead-letter topic."""


class SequenceLost(RequestError):
    """The state of the request's sequence is gone: its worker ended, or it was idle for too long. Start it again."""


class InternalError(RequestError):
    """Headrace failed to answer through no fault of the request."""

    retryable = True


class StreamBroken(InternalError):
    """A stream cannot go on from the parts handed out so far: it ran again after a failure and came out differently,
    or parts of it were lost. Ask again.
    """


class BackendError(HeadraceError):
    """A model could not be run."""


class ModelNotFound(BackendError):
    """No such model, or no such version of it, is registered."""


class ModelLoadError(BackendError):
    """The artefacts of a model version could not be loaded."""


class LeaseLost(HeadraceError):
    """A lease, an assignment or an inbox is no longer held."""

    retryable = True


class PayloadLost(HeadraceError):
    """What a reference names is not in the store any more, or what is there is something else."""


class TransportError(HeadraceError):
    """Kafka, Redis or a store of payloads could not be reached, or refused an operation."""

    retryable = True


class ClientClosed(HeadraceError):
    """The client was closed before the response arrived; the request may still be carried out."""


class ConfigurationError(HeadraceError):
    """A setting, a command-line argument or a spec is wrong; the message names it and the way out."""
