"""The ingest process of a worker: `python -P -m workers.ingest`, as workers.draining.process says."""

from __future__ import annotations

from contracts.settings import load_settings
from workers.draining import process
from workers.draining.process import Duty, Orders
from workers.ingest.settings import WorkerSettings
from workers.ingest.worker import Worker


def _take(orders: Orders) -> Duty:
    settings = load_settings(WorkerSettings)
    worker = Worker(orders.lease, orders.token, orders.run_dir, settings)
    return Duty(worker, settings.log, settings.worker)


if __name__ == "__main__":
    process.main("workers.ingest", "worker", _take)
