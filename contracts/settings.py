"""Settings that all processes share, and the check that no `HEADRACE_*` variable is misspelt.

Each process has its own settings class built from these groups; values come from its constructor, then from the
environment (`HEADRACE_KAFKA__BOOTSTRAP` is `settings.kafka.bootstrap`). Nothing is read at import.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.errors import ConfigurationError
from contracts.lease import check_timing
from contracts.names import NAME_PATTERN

ENV_PREFIX = "HEADRACE_"
SECTIONS = (
    "kafka",
    "redis",
    "log",
    "lease",
    "worker",
    "joiner",
    "agent",
    "scheduler",
    "client",
    "inbox",
    "gateway",
    "stack",
    "cache",
    "idempotency",
    "blobs",
)
"""Every process's groups. All processes share one environment, and each checks the groups that it reads itself."""
_test_prefix = "HEADRACE_TEST_"  # read by the test suite and the fault kit, not by settings


class Group(BaseModel):
    """A group of settings: frozen, no unknown fields, each field's docstring is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class KafkaSettings(Group):
    """How to reach and use Kafka."""

    bootstrap: str = "127.0.0.1:9092"
    """Bootstrap servers, host:port separated by commas."""
    prefix: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")] = "headrace"
    """First part of every topic and group name."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """As in Kafka's own clients."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """Used with the SASL protocols."""
    username: str = ""
    """SASL user name."""
    password: SecretStr = SecretStr("")
    """SASL password."""
    ca_file: str = ""
    """PEM file of the authority that signed the brokers' certificates; empty takes the system's."""
    replication: Annotated[int, Field(ge=1, le=9)] = 1
    """Replicas of topics that Headrace creates; use 3 in production."""
    min_insync: Annotated[int, Field(ge=1, le=9)] = 1
    """min.insync.replicas of topics that Headrace creates; use 2 in production."""
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """A broker that has not answered in this time is given up."""

    @model_validator(mode="after")
    def _insync_below_replication(self) -> Self:
        if self.min_insync > self.replication:
            msg = f"min_insync {self.min_insync} is above replication {self.replication}: nothing could be written"
            raise ValueError(msg)
        return self


class RedisSettings(Group):
    """How to reach Redis."""

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """redis:// or rediss:// URL, with user and password when there are any."""
    prefix: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")] = "headrace"
    """First part of every key."""
    pool: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")] = "default"
    """The device pool that this process belongs to."""
    plan_seconds: Annotated[float, Field(gt=0)] = 86_400.0
    """A compiled pipeline is kept for so long after the last submitter with it has gone; at least four times the
    longest time to live of its jobs."""


class LeaseSettings(Group):
    """How long a right lasts without being renewed."""

    ttl_seconds: Annotated[float, Field(gt=0)] = 15.0
    """A lease that was not renewed for this long ends; it rides over a Redis failover."""
    renew_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Time between renewals."""
    margin_seconds: Annotated[float, Field(gt=0)] = 3.0
    """A holder stops trusting its lease this long before the lease ends."""
    handover_seconds: Annotated[float, Field(gt=0)] = 15.0
    """An owner that has not let go of a partition after this long is evicted."""
    start_seconds: Annotated[float, Field(gt=0)] = 120.0
    """A worker that is not ready this long after its lease was granted is given up."""

    @model_validator(mode="after")
    def _related(self) -> Self:
        try:
            check_timing(
                ttl_seconds=self.ttl_seconds, renew_seconds=self.renew_seconds, margin_seconds=self.margin_seconds
            )
        except ConfigurationError as exc:
            raise ValueError(str(exc)) from exc
        return self


class BlobSettings(Group):
    """Where tensors lie that are too large for a record; the same store for clients, workers and the scheduler."""

    url: str = ""
    """Root of the store, as fsspec writes it: file:///srv/headrace, s3://bucket/headrace, … Empty: there is none, and
    what is too large is refused. What lies below belongs to Headrace alone."""
    claim_check_bytes: Annotated[int, Field(ge=1024, le=256 * 1024)] = 256 * 1024
    """Tensors of a request above this are stored and travel as references; smaller ones too when the request would not
    fit a record otherwise."""
    in_flight_bytes: Annotated[int, Field(ge=1024 * 1024)] = 64 * 1024 * 1024
    """Bytes that one process reads and writes at a time; a worker's, with those that wait for a batch."""
    threads: Annotated[int, Field(ge=1, le=64)] = 4
    """Objects that one process reads and writes at a time."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A read or write that takes longer has failed."""
    keep_seconds: Annotated[float, Field(ge=7 * 3600)] = 90_000.0
    """Objects older than this are swept away; at least the longest time to live and an hour. Dead letters whose objects
    are to be there for longer need more."""
    sweep_seconds: Annotated[float, Field(ge=0)] = 3600.0
    """Time between sweeps by the scheduler that leads; 0 leaves it to the store's own rules, or `headrace blobs
    sweep`."""


class LogSettings(Group):
    """What is logged, and how."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lines below this level are dropped."""
    json_lines: bool = False
    """JSON lines instead of text."""


class HeadraceSettings(BaseSettings):
    """The base of every process's settings."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    log: LogSettings = LogSettings()


_T = TypeVar("_T", bound=HeadraceSettings)
_known_extra: set[str] = set()


def known_variables(kind: type[BaseModel], prefix: str = ENV_PREFIX) -> Iterator[str]:
    """The environment variables that a settings class reads."""
    for name, field in kind.model_fields.items():
        variable = f"{prefix}{name}".upper()
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from known_variables(inner, f"{variable}__")
        else:
            yield variable


def register_settings(kind: type[_T]) -> type[_T]:
    """Class decorator: from the import of this class on, its variables are known, and checked."""
    _known_extra.update(known_variables(kind))
    return kind


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Each `HEADRACE_*` variable that nothing reads, with the nearest valid name ("" when none is near)."""
    known = _known_extra | set(known_variables(HeadraceSettings))
    groups = {f"{ENV_PREFIX}{section}__".upper() for section in SECTIONS}
    elsewhere = tuple(group for group in groups if not any(name.startswith(group) for name in known))
    found = {}
    for name in sorted(environment):
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper.startswith((_test_prefix, *elsewhere)) or upper in known:
            continue
        near = difflib.get_close_matches(upper, known | groups, n=1, cutoff=0.6)
        found[name] = near[0] if near else ""
    return found


def load_settings(kind: type[_T], environment: Mapping[str, str] | None = None, **overrides: object) -> _T:
    """Build settings from overrides and the environment.

    Raises ConfigurationError for a misspelt `HEADRACE_*` variable, naming the nearest valid one, and for wrong values.
    """
    unknown = unknown_variables(os.environ if environment is None else environment)
    if unknown:
        lines = [f"  {name}" + (f": did you mean {near}?" if near else "") for name, near in unknown.items()]
        raise ConfigurationError("\n".join(["unknown environment variables; unset or correct them:", *lines]))
    try:
        return kind(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as exc:
        faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in exc.errors()]
        raise ConfigurationError("\n".join(["settings cannot be used:", *faults])) from exc
