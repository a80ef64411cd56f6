"""The joiner process: `python -P -m workers.joiner`, as workers.draining.process says."""

from __future__ import annotations

from contracts.settings import load_settings
from workers.draining import process
from workers.draining.process import Duty, Orders
from workers.joiner.settings import JoinerSettings
from workers.joiner.worker import Joiner


def _take(orders: Orders) -> Duty:
    settings = load_settings(JoinerSettings)
    return Duty(Joiner(orders.lease, orders.token, settings), settings.log, settings.joiner)


if __name__ == "__main__":
    process.main("workers.joiner", "joiner", _take)
