"""Metrics and logs: one prefix, one format.

Metrics carry few labels and never one per request. Log lines carry ids and classes, never the bytes of a request.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

PREFIX: Final = "headrace"
REGISTRY: Final = CollectorRegistry()
_plain = frozenset(vars(logging.makeLogRecord({})))
_seconds = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


def counter(name: str, text: str, *labels: str) -> Counter:
    """A counter `headrace_<name>_total`."""
    return Counter(f"{PREFIX}_{name}", text, labels, registry=REGISTRY)


def gauge(name: str, text: str, *labels: str) -> Gauge:
    """A gauge `headrace_<name>`."""
    return Gauge(f"{PREFIX}_{name}", text, labels, registry=REGISTRY)


def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _seconds) -> Histogram:
    """A histogram `headrace_<name>`; buckets default to latencies in seconds."""
    return Histogram(f"{PREFIX}_{name}", text, labels, registry=REGISTRY, buckets=buckets)


def serve_metrics(port: int, host: str = "127.0.0.1") -> int:
    """Serve /metrics from a thread; port 0 takes a free one. Returns the port."""
    server, _ = start_http_server(port, addr=host, registry=REGISTRY)
    return int(server.server_port)


class _JsonLines(logging.Formatter):
    """One JSON object per line, with whatever was passed in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _plain and key != "taskName"}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(service: str, *, level: str = "INFO", as_json: bool = False) -> None:
    """Send the log to standard error, as text for people or as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {service} %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if as_json else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # aiokafka reports every refused reconnect at ERROR; ours say what matters once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
