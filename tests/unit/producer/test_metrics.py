from __future__ import annotations

import msgspec
import pytest

from contracts.errors import ConfigurationError
from contracts.settings import load_settings
from producer.metrics import ClientCollector
from producer.pending import ClientStats
from producer.settings import BehaviourSettings, ClientSettings, InboxSettings


class Counting:
    def __init__(self, **counts: int) -> None:
        self.counts = ClientStats(**counts)

    def stats(self) -> ClientStats:
        return self.counts


def values(collector: ClientCollector) -> dict[str, float]:
    return {sample.name: sample.value for metric in collector.collect() for sample in metric.samples}


def test_counters_of_all_clients_are_summed() -> None:
    collector = ClientCollector()
    one, other = Counting(requests=3, in_flight=1), Counting(requests=4, in_flight=2)
    collector.add(one)
    collector.add(other)
    found = values(collector)
    assert found["headrace_client_requests_total"] == 7
    assert found["headrace_client_in_flight"] == 3


def test_counts_of_closed_clients_stay_and_what_they_had_in_flight_does_not() -> None:
    collector = ClientCollector()
    client = Counting(requests=3, in_flight=1)
    collector.add(client)
    collector.remove(client)
    collector.remove(client)
    client.counts = msgspec.structs.replace(client.counts, requests=100)
    found = values(collector)
    assert found["headrace_client_requests_total"] == 3
    assert found["headrace_client_in_flight"] == 0


def test_every_counter_is_explained() -> None:
    assert all(metric.documentation for metric in ClientCollector().collect())


def test_settings_come_from_the_environment_under_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CLIENT__MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("HEADRACE_INBOX__NAME", "orders")
    settings = load_settings(ClientSettings)
    assert (settings.client.max_in_flight, settings.inbox.name) == (7, "orders")


def test_a_misspelt_variable_stops_the_client_and_names_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CLIENT__MAX_INFLIGHT", "7")
    with pytest.raises(ConfigurationError, match="did you mean HEADRACE_CLIENT__MAX_IN_FLIGHT"):
        load_settings(ClientSettings)


def test_responses_must_be_kept_longer_than_anybody_waits() -> None:
    with pytest.raises(ValueError, match="responses vanish unread"):
        ClientSettings(client=BehaviourSettings(ttl_seconds=90), inbox=InboxSettings(retention_ms=60_000))
