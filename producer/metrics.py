"""A client's counters as metrics: read when somebody scrapes, so that a request costs nothing for them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from contracts.telemetry import PREFIX, REGISTRY
from producer.pending import ClientStats


class Counted(Protocol):
    """Something with these counters."""

    def stats(self) -> ClientStats: ...


_help = {
    "in_flight": "requests without a response",
    "requests": "requests sent",
    "responses": "responses that reached their caller",
    "parts": "parts of streams that arrived before their final response",
    "expired": "requests answered DEADLINE_EXCEEDED by the client itself",
    "abandoned": "requests given up by their callers",
    "overloaded": "requests refused because the window was full",
    "duplicate": "responses dropped because the request was answered before",
    "late": "responses dropped because nobody waited any more",
    "unknown": "responses dropped because this client never asked",
    "foreign": "error responses dropped because another client's submission was meant",
    "malformed": "records in the inbox that are no responses",
    "inbox_moves": "times that the inbox lease was lost",
    "rebuilds": "times that the producer was replaced",
}


class ClientCollector(Collector):
    """Sums the counters of all clients of this process; those of closed ones stay in the sum."""

    def __init__(self) -> None:
        self._clients: weakref.WeakSet[Counted] = weakref.WeakSet()
        self._closed = dict.fromkeys(_help, 0)
        self._lock = threading.Lock()

    def add(self, client: Counted) -> None:
        """Count a client's work from now on."""
        with self._lock:
            self._clients.add(client)

    def remove(self, client: Counted) -> None:
        """A client closed: keep its counts, let go of it."""
        with self._lock:
            if client in self._clients:
                self._clients.discard(client)
                _add(self._closed, client.stats())
                self._closed["in_flight"] = 0

    def collect(self) -> Iterator[Metric]:
        """Called for each scrape."""
        with self._lock:
            sums = dict(self._closed)
            for client in self._clients:
                _add(sums, client.stats())
        for name, value in sums.items():
            kind = GaugeMetricFamily if name == "in_flight" else CounterMetricFamily
            yield kind(f"{PREFIX}_client_{name}", _help[name], value=value)


def _add(sums: dict[str, int], stats: ClientStats) -> None:
    for name, value in msgspec.structs.asdict(stats).items():
        sums[name] += value


CLIENTS = ClientCollector()
REGISTRY.register(CLIENTS)
