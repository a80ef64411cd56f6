"""What the log answers to each request but Fetch, which may have to wait (`log_fetch`).

A handler is named after its API; it reads fields of the request and names fields of the answer. Refusals travel as
LogError and become error codes at the smallest part that Kafka can refuse, `_part`. A full disk becomes
KAFKA_STORAGE_ERROR there, which producers take for a reason to try again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kio.schema.errors import ErrorCode

from deploy.embedded import log_wire as wire
from deploy.embedded.log_config import SETTINGS
from deploy.embedded.log_faults import Faults
from deploy.embedded.log_store import Store
from deploy.embedded.log_wire import NOWHERE, Api, Fields, LogError, Message, Produced, ProtocolError, Request

log = logging.getLogger(__name__)

NODE = 1
CLUSTER = "headrace-embedded-log"
_LATEST, _EARLIEST = -1, -2  # the times that ListOffsets gives a meaning
_MAX_METADATA_CHARACTERS = 4096
_TOPIC, _BROKER = 2, 4  # kinds of resources that have settings
_SET, _DELETE = 0, 1  # what IncrementalAlterConfigs may do
_BY_TOPIC, _BY_BROKER, _BY_DEFAULT = 1, 4, 5  # where a setting's value comes from
_NO_MEMBERS = "the embedded log has no consumer groups with members: use assign() and commit under a group id"
_NO_TRANSACTIONS = "the embedded log has no transactions"
_UNDIVIDED = {  # what is refused as a whole, because it has no parts
    Api.FIND_COORDINATOR,
    Api.HEARTBEAT,
    Api.INIT_PRODUCER_ID,
    Api.JOIN_GROUP,
    Api.LEAVE_GROUP,
    Api.LIST_GROUPS,
    Api.SYNC_GROUP,
}


class Handlers:
    """Answers requests from the store. Produce is done by a method of its own, since its answer is written later."""

    def __init__(self, store: Store, faults: Faults, host: str, port: int) -> None:
        self._store = store
        self._faults = faults
        self._broker = {"node_id": NODE, "host": host, "port": port}

    def handle(self, request: Request) -> bytes:
        """The framed answer to any other request."""
        self._faults.begin()
        action: Callable[[Message], Fields] = getattr(self, request.api.name.lower())
        if request.api in _UNDIVIDED:
            fields = self._part(request.api, None, {}, action, request.body)
        else:
            with suppress(LogError, OSError):  # what refuses the API refuses each of its parts
                self._faults.check(request.api)
            fields = action(request.body)
        if request.version < 0:
            fields = {**fields, "error_code": ErrorCode.unsupported_version}
        return wire.write_response(request, fields)

    def _part(self, api: Api, topic: str | None, name: Fields, action: Callable[..., Any], *arguments: Any) -> Fields:
        """Fields of one part of an answer: those that name it, and the action's result or the error it met."""
        try:
            self._faults.check(api, topic)
            return {**name, **(action(*arguments) or {})}
        except LogError as error:
            return {**name, "error_code": error.code, "error_message": str(error)}
        except OSError as error:
            log.warning("%s of %s failed: %s", api.name, topic, error)
            return {**name, "error_code": ErrorCode.kafka_storage_error, "error_message": str(error)}

    def _each_partition(self, api: Api, topic: Message, action: Callable[[str, Message], Any]) -> Fields:
        names = [{"partition_index": part.partition_index} for part in topic.partitions]
        parts = zip(names, topic.partitions, strict=True)
        answers = [self._part(api, topic.name, name, action, topic.name, part) for name, part in parts]
        return {"name": topic.name, "partitions": answers}

    def _each_topic(self, api: Api, topics: list[Message], action: Callable[[Message], Any]) -> list[Fields]:
        return [self._part(api, topic.name, {"name": topic.name}, action, topic) for topic in topics]

    def _each_resource(self, api: Api, resources: list[Message], action: Callable[[Message], Any]) -> list[Fields]:
        names = [{"resource_type": item.resource_type, "resource_name": item.resource_name} for item in resources]
        parts = zip(names, resources, strict=True)
        return [self._part(api, item.resource_name, name, action, item) for name, item in parts]

    def _each_group(self, api: Api, groups: list[str], action: Callable[[str], Any]) -> list[Fields]:
        return [self._part(api, None, {"group_id": group}, action, group) for group in groups]

    # records

    def produce(self, request: Request) -> list[tuple[str, list[Produced]]] | None:
        """Append what a producer sent; what became of it by topic, None when it wants no answer."""
        self._faults.begin()
        acks, topics = request.body.acks, []
        for topic in request.body.topic_data:
            name, parts = topic.name, []
            for part in topic.partition_data:
                parts.append(self._append(name, part.index, part.records, acks))  # noqa: PERF401 - a frame less
            topics.append((name, parts))
        if acks:
            return topics
        if any(part.error for _, parts in topics for part in parts):
            raise ProtocolError("a produce without acknowledgement failed, and this is the only way to tell")
        return None

    def _append(self, topic: str, index: int, records: bytes | None, acks: int) -> Produced:
        try:
            self._faults.check(Api.PRODUCE, topic)
            partition = self._store.partition(topic, index)
            if acks < 0 and partition.config.min_insync_replicas > 1:
                return Produced(index, ErrorCode.not_enough_replicas)
            appended = partition.append(records or b"", self._store.clock.unix_ms())
        except LogError as error:
            return Produced(index, error.code)
        except OSError as error:
            log.warning("append to %s/%s failed: %s", topic, index, error)
            return Produced(index, ErrorCode.kafka_storage_error)
        return Produced(index, 0, appended.base_offset, appended.append_time, partition.start_offset)

    def list_offsets(self, body: Message) -> Fields:
        def find(topic: str, wish: Message) -> Fields:
            partition = self._store.partition(topic, wish.partition_index)
            if wish.timestamp == _LATEST:
                return {"offset": partition.end_offset, "leader_epoch": 0}
            if wish.timestamp == _EARLIEST:
                return {"offset": partition.start_offset, "leader_epoch": 0}
            time, offset = partition.find_time(wish.timestamp)
            return {"timestamp": time, "offset": offset, "leader_epoch": min(offset, 0)}

        return {"topics": [self._each_partition(Api.LIST_OFFSETS, topic, find) for topic in body.topics]}

    def delete_records(self, body: Message) -> Fields:
        def delete(topic: str, wish: Message) -> Fields:
            return {"low_watermark": self._store.delete_records(topic, wish.partition_index, wish.offset)}

        return {"topics": [self._each_partition(Api.DELETE_RECORDS, topic, delete) for topic in body.topics]}

    def init_producer_id(self, body: Message) -> Fields:
        if body.transactional_id is not None:
            raise LogError(ErrorCode.transactional_id_authorization_failed, _NO_TRANSACTIONS)
        return {"producer_id": self._store.next_producer_id(), "producer_epoch": 0}

    # the cluster and its topics

    def api_versions(self, body: Message) -> Fields:
        return {"api_keys": [{"api_key": a, "min_version": a.lowest, "max_version": a.highest} for a in Api]}

    def metadata(self, body: Message) -> Fields:
        def describe(name: str) -> Fields:
            leader = {"leader_id": NODE, "leader_epoch": 0, "replica_nodes": (NODE,), "isr_nodes": (NODE,)}
            count = len(self._store.topic(name).partitions)
            return {"partitions": [{"partition_index": index, **leader} for index in range(count)]}

        names = list(self._store.topics) if body.topics is None else [topic.name for topic in body.topics]
        topics = [self._part(Api.METADATA, name, {"name": name}, describe, name) for name in names]
        return {"brokers": [self._broker], "cluster_id": CLUSTER, "controller_id": NODE, "topics": topics}

    def create_topics(self, body: Message) -> Fields:
        def create(wish: Message) -> Fields:
            count = len(wish.assignments) or (1 if wish.num_partitions == -1 else wish.num_partitions)
            if not wish.assignments and wish.replication_factor not in {-1, 1}:
                raise LogError(ErrorCode.invalid_replication_factor, "there is one broker: the replication factor is 1")
            overrides = {config.name: config.value for config in wish.configs}
            self._store.create_topic(wish.name, count, overrides, dry_run=body.validate_only)
            return {"num_partitions": count, "replication_factor": 1}

        return {"topics": self._each_topic(Api.CREATE_TOPICS, body.topics, create)}

    def create_partitions(self, body: Message) -> Fields:
        def grow(wish: Message) -> None:
            self._store.grow_topic(wish.name, wish.count, dry_run=body.validate_only)

        return {"results": self._each_topic(Api.CREATE_PARTITIONS, body.topics, grow)}

    def delete_topics(self, body: Message) -> Fields:
        delete, names = self._store.delete_topic, body.topic_names
        return {"responses": [self._part(Api.DELETE_TOPICS, name, {"name": name}, delete, name) for name in names]}

    # settings

    def describe_configs(self, body: Message) -> Fields:
        def describe(wish: Message) -> Fields:
            if wish.resource_type == _BROKER:  # the one setting of a broker that a client may want to look up here
                auto = {"name": "auto.create.topics.enable", "value": "false", "config_source": _BY_BROKER}
                return {"configs": [{**auto, "read_only": True}]}
            given = self._overrides(wish)
            keys = wish.configuration_keys
            entries = [
                {
                    "name": name,
                    "value": given.get(name, setting.default),
                    "config_source": _BY_TOPIC if name in given else _BY_DEFAULT,
                    "config_type": setting.kind,
                }
                for name, setting in SETTINGS.items()
                if not keys or name in keys
            ]
            return {"configs": entries}

        return {"results": self._each_resource(Api.DESCRIBE_CONFIGS, body.resources, describe)}

    def alter_configs(self, body: Message) -> Fields:
        def replace(wish: Message) -> None:
            self._overrides(wish)  # refuses what is no topic
            overrides = {config.name: config.value for config in wish.configs}
            self._store.configure_topic(wish.resource_name, overrides, dry_run=body.validate_only)

        return {"responses": self._each_resource(Api.ALTER_CONFIGS, body.resources, replace)}

    def incremental_alter_configs(self, body: Message) -> Fields:
        def change(wish: Message) -> None:
            overrides = self._overrides(wish)
            for config in wish.configs:
                if config.config_operation not in {_SET, _DELETE}:
                    raise LogError(ErrorCode.invalid_config, f"{config.name} is no list: it can be set and deleted")
                overrides[config.name] = config.value if config.config_operation == _SET else None
            self._store.configure_topic(wish.resource_name, overrides, dry_run=body.validate_only)

        return {"responses": self._each_resource(Api.INCREMENTAL_ALTER_CONFIGS, body.resources, change)}

    def _overrides(self, wish: Message) -> dict[str, str | None]:
        if wish.resource_type != _TOPIC:
            raise LogError(ErrorCode.invalid_request, "the embedded log has settings for topics only")
        return dict(self._store.topic(wish.resource_name).config.overrides)

    # groups: names to commit under, without members

    def find_coordinator(self, body: Message) -> Fields:
        if getattr(body, "key_type", 0):
            raise LogError(ErrorCode.transactional_id_authorization_failed, _NO_TRANSACTIONS)
        return self._broker

    def join_group(self, body: Message) -> Fields:
        log.warning("group %s: %s", body.group_id, _NO_MEMBERS)
        raise LogError(ErrorCode.group_authorization_failed, _NO_MEMBERS)

    heartbeat = leave_group = sync_group = join_group

    def offset_commit(self, body: Message) -> Fields:
        def commit(topic: str, wish: Message) -> None:
            if body.generation_id_or_member_epoch >= 0:
                raise LogError(ErrorCode.unknown_member_id, _NO_MEMBERS)
            if len(wish.committed_metadata or "") > _MAX_METADATA_CHARACTERS:
                raise LogError(ErrorCode.offset_metadata_too_large, f"more than {_MAX_METADATA_CHARACTERS} characters")
            self._store.partition(topic, wish.partition_index)
            value = [wish.committed_offset, getattr(wish, "committed_leader_epoch", -1), wish.committed_metadata or ""]
            self._store.journal.put("offset", body.group_id, topic, wish.partition_index, value=value)

        return {"topics": [self._each_partition(Api.OFFSET_COMMIT, topic, commit) for topic in body.topics]}

    def offset_fetch(self, body: Message) -> Fields:
        nothing = {"committed_offset": NOWHERE, "committed_leader_epoch": -1, "metadata": ""}

        def fetch(topic: str, index: int) -> Fields:
            committed = self._store.journal.get("offset", body.group_id, topic, index)
            return dict(zip(nothing, committed or nothing.values(), strict=True))

        def answer(topic: str, indexes: list[int]) -> Fields:
            names = [{"partition_index": index, **nothing} for index in indexes]
            parts = zip(names, indexes, strict=True)
            answers = [self._part(Api.OFFSET_FETCH, topic, name, fetch, topic, index) for name, index in parts]
            return {"name": topic, "partitions": answers}

        if body.topics is not None:
            return {"topics": [answer(topic.name, topic.partition_indexes) for topic in body.topics]}
        committed: dict[Any, list[Any]] = {}
        for (topic, index), _ in self._store.journal.under("offset", body.group_id):
            committed.setdefault(topic, []).append(index)
        return {"topics": [answer(topic, indexes) for topic, indexes in committed.items()]}

    def list_groups(self, body: Message) -> Fields:
        wanted = "Empty" in (getattr(body, "states_filter", ()) or ("Empty",))
        return {"groups": [{"group_id": group, "group_state": "Empty"} for group in self._groups() if wanted]}

    def describe_groups(self, body: Message) -> Fields:
        def describe(group: str) -> Fields:
            return {"group_state": "Empty" if group in self._groups() else "Dead"}

        return {"groups": self._each_group(Api.DESCRIBE_GROUPS, body.groups, describe)}

    def delete_groups(self, body: Message) -> Fields:
        def delete(group: str) -> None:
            if group not in self._groups():
                raise LogError(ErrorCode.group_id_not_found, f"nothing is committed under {group}")
            for key, _ in self._store.journal.under("offset", group):
                self._store.journal.put("offset", group, *key, value=None)

        return {"results": self._each_group(Api.DELETE_GROUPS, body.groups_names, delete)}

    def _groups(self) -> set[str]:
        return {str(key[0]) for key, _ in self._store.journal.under("offset")}
