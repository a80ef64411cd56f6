"""Every Redis key, built here and nowhere else.

Pool keys share one hash tag, so that a script may touch all of them: scripts get the root as KEYS[1] and append the
names below. Who ends a thing deletes its keys in the same script; the keys of `WITHOUT_TTL` live as long as the pool.

    <prefix>:{<pool>}               root of a pool
      :epoch :tok :leader           data set incarnation; last token; {holder, term, exp}
      :nodes :node:<n> :node:<n>:devs :node:<n>:leases
      :devs :dev:<id> :dev:<id>:leases
      :lease:<id> :lease:<id>:parts :lease:<id>:want      partitions owned; partitions wanted of it
      :lexp :quar                   live leases by expiry; ended ones by when they ended
      :ended:<id>                   tombstone of a deleted lease (ttl 10 min): its id is not granted again
      :topics :part:<t>:want :part:<t>:own :part:<t>:since
      :tenant:<t> :demands :demand:<model>.<version>
      :ev                           stream of changes, about 10 000
      :flights                      what the workers' engines hold: <lease>/<slot> → time|topic/partition:first-last;…
      :tries:<topic>/<partition>    launches lost by offset, and `claims` without progress; ttl a day
    <prefix>:registry:{models, deployments, routes, knobs, pipelines, rev}
    <prefix>:plan:<digest>          a compiled pipeline; ttl refreshed while jobs are submitted with it
    <prefix>:inbox:{<inbox>}:<partition>                  token of the client that reads it; ttl
    <prefix>:cancels                stream of cancelled request ids; ttl of the longest lived
    <prefix>:idem:<tenant>:<key>    what an idempotency key stands for, and what came of it; ttl 24 h
"""

from __future__ import annotations

import re

from contracts.names import ModelVersion

DEFAULT_PREFIX = "headrace"
EVENTS_KEPT = 10_000
CANCELS_KEPT = 100_000
TOMBSTONE_MS = 600_000  # longer than any delayed duplicate of a commit can be under way

_POOL_WITHOUT_TTL = (
    r"epoch|tok|leader|nodes|node:[^:]+(:devs|:leases)?|devs|dev:[^:]+(:leases)?|lease:[^:]+(:parts|:want)?|lexp|quar"
    r"|topics|part:[^:]+:(want|own|since)|tenant:[^:]+|demands|demand:[^:]+|ev|flights"
)
WITHOUT_TTL = re.compile(
    rf"[^:]+:(\{{[^}}]+\}}:({_POOL_WITHOUT_TTL})|registry:(models|deployments|routes|knobs|pipelines|rev))"
)
"""Keys that may lack a ttl; a test that finds another one has found a leak."""


def pool(prefix: str, name: str) -> str:
    """The root of a pool's keys."""
    return f"{prefix}:{{{name}}}"


def events(prefix: str, name: str) -> str:
    """The stream of a pool's changes."""
    return f"{pool(prefix, name)}:ev"


def flights(prefix: str, name: str) -> str:
    """What the engines of a pool hold."""
    return f"{pool(prefix, name)}:flights"


def demand(prefix: str, name: str, deployment: ModelVersion) -> str:
    """What was asked of a deployment apart from its spec."""
    return f"{pool(prefix, name)}:demand:{deployment.model}.{deployment.version}"


def registry(prefix: str) -> str:
    """The root of the registry's keys."""
    return f"{prefix}:registry"


def plan(prefix: str, digest: str) -> str:
    """A compiled pipeline."""
    return f"{prefix}:plan:{digest}"


def inbox(prefix: str, name: str) -> str:
    """The root of the leases of an inbox's partitions."""
    return f"{prefix}:inbox:{{{name}}}"


def cancels(prefix: str) -> str:
    """The stream of cancelled requests."""
    return f"{prefix}:cancels"


def idempotency(prefix: str, tenant: str, key: str) -> str:
    """The record of a tenant's idempotency key; a tenant is a name, so that no two pairs share a record."""
    return f"{prefix}:idem:{tenant}:{key}"


def may_lack_ttl(key: str) -> bool:
    """Whether a key may live for ever."""
    return WITHOUT_TTL.fullmatch(key) is not None
