"""What is refused before it is published. Pure.

A request that is knowably wrong would come back as an error response some milliseconds later; refused here it costs
neither the broker nor a worker anything, and the traceback points at the caller's own line.
"""

from __future__ import annotations

from contracts import topics
from contracts.codec import MAX_INLINE_BYTES, PRIORITIES, decode_address
from contracts.errors import InvalidRequest
from contracts.messages import MAX_TTL_MS, ReplyAddress
from contracts.names import Priority, is_request_id
from contracts.payloads import ENVELOPE_BYTES, URL_VARIABLE


class TooLarge(InvalidRequest):
    """A request does not fit into a record as it is; its tensors may still travel by reference."""


def check_size(size: int, what: str = "the request's body", limit: int = MAX_INLINE_BYTES) -> None:
    """Raise TooLarge for a body that may not travel in a record."""
    if size > limit:
        msg = (
            f"{what} has {size:,} bytes; at most {limit:,} travel inside a request: send fewer rows per request, or a "
            f"smaller datatype, or set {URL_VARIABLE} to a store that workers can read"
        )
        raise TooLarge(msg)


def check_tensor_bytes(size: int, limit: int = MAX_INLINE_BYTES) -> None:
    """The same before encoding, so that an enormous array is not copied first."""
    if size > limit + ENVELOPE_BYTES:
        check_size(size, "the inputs' data", limit)


def ttl_ms(seconds: float) -> int:
    """A time to live as it stands on the wire. Raises InvalidRequest when there is no such ttl."""
    if not 0 < seconds <= MAX_TTL_MS / 1000:  # also refuses NaN
        msg = f"ttl_seconds must be above 0 and at most {MAX_TTL_MS // 1000}, not {seconds}"
        raise InvalidRequest(msg)
    return max(1, round(seconds * 1000))


def check_request_id(request_id: str) -> str:
    """Return a caller's request id. Raises InvalidRequest when it is none."""
    if not is_request_id(request_id):
        msg = "request_id must be 1 to 64 letters, digits, '.', '_', '~' or '-'"
        raise InvalidRequest(msg)
    return request_id


def check_priority(priority: str) -> Priority:
    """Return a caller's priority. Raises InvalidRequest when there is no such one."""
    if priority not in PRIORITIES:
        msg = f"priority must be one of {', '.join(PRIORITIES)}, not {priority!r}"
        raise InvalidRequest(msg)
    return priority


def check_reply_to(prefix: str, reply_to: str | ReplyAddress | None) -> ReplyAddress | None:
    """A caller's reply address. Raises InvalidRequest when it is none, or outside of this deployment's topics."""
    if reply_to is None:
        return None
    _, address = decode_address([("id", b"-"), ("re", str(reply_to).encode())])
    if address is None or not topics.is_replies(prefix, address.topic):
        wanted = topics.replies(prefix, "<inbox>")
        msg = f"reply_to must be {wanted}/<partition>/<token>, not {str(reply_to)!r}"
        raise InvalidRequest(msg)
    return address
