"""Every Kafka topic and commit group, built here and nowhere else.

    <prefix>.requests.<model>.<version>   work for one model version; group headrace.<model>.<version>
    <prefix>.requests.<model>.<version>.high, .low
                                          the same for those of another priority, where a deployment asks for lanes
    <prefix>.requests.<model>             reserved for work whose version the route table decides
    <prefix>.retry.<model>.<version>      requests to be tried again later; one partition for each delay
    <prefix>.replies.<inbox>              responses; each client instance reads one partition of it, without a group
    <prefix>.dead.<model>                 requests that could not be answered by a result, with the reason
    <prefix>.joins.<pipeline>.<version>   parts of a pipeline's jobs, waiting for their siblings

A pipeline has a request topic like a model's, and no model may have its name.

Kafka treats `.` and `_` alike in metric names, so two models that differ only there would share metrics: `collides`
finds them when models are registered.
"""

from __future__ import annotations

from functools import lru_cache

from contracts.names import LANE_NAMES, ModelVersion

DEFAULT_PREFIX = "headrace"
LANES = LANE_NAMES
"""Priorities that have a topic of their own where a deployment asks for lanes."""


@lru_cache(maxsize=4096)
def requests(prefix: str, model: str, version: int) -> str:
    """The topic of requests pinned to one model version."""
    return f"{prefix}.requests.{model}.{version}"


def lane(requests_topic: str, priority: str) -> str:
    """The topic of a model version's requests of one priority; `normal` ones have the request topic itself."""
    return f"{requests_topic}.{priority}" if priority in LANES else requests_topic


def lane_of(topic: str) -> str | None:
    """The priority that a lane's topic stands for; None for every other topic."""
    priority = topic.rpartition(".")[2]
    return priority if priority in LANES else None


def without_lane(topic: str) -> str:
    """The request topic to which a lane's topic belongs; any other topic is its own."""
    return topic if lane_of(topic) is None else topic.rpartition(".")[0]


def retry(prefix: str, model: str, version: int) -> str:
    """The topic of requests that wait for their next attempt."""
    return f"{prefix}.retry.{model}.{version}"


def retry_group(prefix: str, model: str, version: int) -> str:
    """The group id under which retries are committed when they went back; nobody ever joins it."""
    return f"{prefix}.retry.{model}.{version}"


def replies(prefix: str, inbox: str) -> str:
    """The topic that carries the responses of one service."""
    return f"{prefix}.replies.{inbox}"


def dead(prefix: str, model: str) -> str:
    """The topic of a model's dead letters."""
    return f"{prefix}.dead.{model}"


def joins(prefix: str, pipeline: str, version: int) -> str:
    """The topic in which the parts of a pipeline's jobs meet."""
    return f"{prefix}.joins.{pipeline}.{version}"


def joins_group(prefix: str, pipeline: str, version: int) -> str:
    """The group id under which joined parts are committed; nobody ever joins it."""
    return f"{prefix}.joins.{pipeline}.{version}"


def commit_group(prefix: str, model: str, version: int) -> str:
    """The group id under which the workers of a model version commit offsets; nobody ever joins it."""
    return f"{prefix}.{model}.{version}"


def parse_requests(prefix: str, topic: str) -> ModelVersion | None:
    """The model version that a request topic, or a lane of one, belongs to; None when it is no pinned request topic."""
    return _versioned(f"{prefix}.requests.", without_lane(topic))


def parse_joins(prefix: str, topic: str) -> ModelVersion | None:
    """The pipeline whose parts a topic carries; None when it is no joins topic."""
    return _versioned(f"{prefix}.joins.", topic)


def deployment_of(prefix: str, topic: str) -> ModelVersion | None:
    """The model version or pipeline whose workers drain a topic; None when no worker is given partitions of it."""
    return parse_requests(prefix, topic) or parse_joins(prefix, topic)


def _versioned(head: str, topic: str) -> ModelVersion | None:
    if not topic.startswith(head):
        return None
    model, _, version = topic[len(head) :].rpartition(".")
    if not model or not version.isdecimal():
        return None
    return ModelVersion(model, int(version))


@lru_cache(maxsize=4096)
def is_replies(prefix: str, topic: str) -> bool:
    """Whether `topic` may receive responses; a reply address elsewhere is refused."""
    return topic.startswith(f"{prefix}.replies.")


def collides(first: str, second: str) -> bool:
    """Whether two different names would be one in Kafka's metrics."""
    return first != second and first.replace("_", ".") == second.replace("_", ".")
