"""What both of a joiner's drains work with."""

from __future__ import annotations

from typing import NamedTuple

from contracts.clock import Clock
from workers.draining.broker_time import BrokerTime
from workers.draining.courier import Courier
from workers.draining.graves import Graves
from workers.draining.lookups import Lookups
from workers.draining.publisher import Publisher
from workers.draining.tombstones import Tombstones
from workers.joiner.plans import Plans


class Tools(NamedTuple):
    """What the joiner works with."""

    plans: Plans
    courier: Courier
    graves: Graves
    lookups: Lookups
    publisher: Publisher
    clock: Clock
    broker_time: BrokerTime
    cancelled: Tombstones
