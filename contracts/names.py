"""Which names models, versions, inboxes, pools and requests may have.

Names become parts of topics, Redis keys and paths, so they are narrow on purpose: lower case, digits, `.`, `_`, `-`,
at most 64 characters, no `..`. A model version is written `name@version`. A model's name must not end in `.` and
digits, nor in such an end and a lane: the topic for requests to any version of a model `a.1` would be that of version 1
of the model `a`, and that of `a.1.high` would be a lane of it.
"""

from __future__ import annotations

import re
import secrets
from typing import Literal, NamedTuple

from contracts.errors import ConfigurationError

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
_NAME = re.compile(NAME_PATTERN)
Priority = Literal["high", "normal", "low"]
"""Who goes first while others wait."""
LANE_NAMES = ("high", "low")
_LIKE_A_VERSION = re.compile(rf"(.+)\.([0-9]+)((?:\.(?:{'|'.join(LANE_NAMES)}))?)")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_LONGEST_REQUEST_ID = 64
DEFAULT_TENANT = "default"
"""To whom belongs what names no tenant."""
MAX_VERSION = 2**31 - 1  # fits every language's plain integer


def is_name(text: str) -> bool:
    """Whether `text` may name an inbox, a pool or a tenant, and a model unless it ends like a version."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def check_name(text: str, what: str = "name") -> str:
    """Return `text`, or raise ConfigurationError saying what a name may look like."""
    if not is_name(text):
        msg = (
            f"{text!r} is no valid {what}: use 1 to 64 lower-case letters, digits, '.', '_' or '-', starting with a "
            "letter or digit, without '..'"
        )
        raise ConfigurationError(msg)
    return text


def check_model_name(text: str) -> str:
    """Return `text`, or raise ConfigurationError saying what a model's name may look like."""
    check_name(text, "model name")
    ending = _LIKE_A_VERSION.fullmatch(text)
    if ending is not None:
        head, digits, lane = ending.groups()
        what = "a lane" if lane else "a version"
        msg = (
            f"{text!r} is no valid model name: its end reads as {what} in the names of topics; write "
            f"{f'{head}-{digits}{lane}'!r}, or '{head}@{digits}' if the version is meant"
        )
        raise ConfigurationError(msg)
    return text


def is_request_id(text: str) -> bool:
    """Whether `text` may identify a request: 1 to 64 of the characters that need no escaping in a URL."""
    # Our clients' ids are letters and digits, which needs no regular expression: a fifth of its time, once per request.
    if text.isalnum() and text.isascii():
        return len(text) <= _LONGEST_REQUEST_ID
    return _REQUEST_ID.fullmatch(text) is not None


def new_request_id() -> str:
    """A fresh id: 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


class ModelVersion(NamedTuple):
    """One immutable version of a model; prints as `name@version`."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> ModelVersion:
        """Read `name@version`; raises ConfigurationError when it is anything else."""
        name, at, version = text.rpartition("@")
        if not at or not version.isdecimal() or not 1 <= int(version) <= MAX_VERSION:
            msg = f"{text!r} is no model version: write name@version, for example digits@2"
            raise ConfigurationError(msg)
        return cls(check_model_name(name), int(version))
