"""Which of the devices that fit is taken: the order in which the board offers them.

An earlier term always wins over a later one: the preferred kind of device, a healthy before a degraded one, for
deployments that spread the node with the fewest of their workers, and then the fullest device (packing leaves whole
devices free for those who need one). The board keeps the devices sorted that way, so an ask looks at a few of them and
not at all; it is also where a plan keeps account of what it has given away so far.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from msgspec import structs

from contracts.pool import USABLE_HEALTH, Device, Mode, Node, PoolState, Share
from scheduler.filters import Ask, refusal

_Entry = tuple[int, int, str]  # free compute, free memory, device id
_healths = ("ok", "degraded")


class Board:
    """What is left of each usable device while a plan is made."""

    def __init__(self, pool: PoolState) -> None:
        self._nodes: Mapping[str, Node] = pool.nodes
        self._devices: dict[str, Device] = {}
        self._lanes: dict[tuple[str, str], list[_Entry]] = {}
        self._hopeless: set[Ask] = set()
        for device in pool.devices.values():
            node = pool.nodes.get(device.node)
            if node is not None and node.state == "ready" and device.health in USABLE_HEALTH and _has_room(device):
                self._devices[device.id] = device
                self._lane(device).append(_entry(device))
        for lane in self._lanes.values():
            lane.sort()

    def find(self, ask: Ask, siblings: Mapping[str, int] | None = None) -> Device | None:
        """The best device for an ask, or None. `siblings` counts workers per node when they should spread."""
        if ask in self._hopeless:
            return None
        for entry in self._offers(ask, siblings):
            device = self._devices[entry[2]]
            if entry[1] >= ask.memory_mib and refusal(self._nodes[device.node], device, ask) is None:
                return device
        self._hopeless.add(ask)  # what does not fit now will not fit later in the same plan: room only shrinks
        return None

    def take(self, device: Device, share: Share, mode: Mode) -> None:
        """Account for a share that the plan gives away."""
        lane = self._lane(device)
        del lane[bisect_left(lane, _entry(device))]
        after = structs.replace(
            device,
            memory_used_mib=device.memory_used_mib + share.memory_mib,
            compute_used=device.compute_used + share.compute,
            lease_count=device.lease_count + 1,
            mask=device.mask | share.mask,
            mode=mode,
        )
        self._devices[after.id] = after
        if _has_room(after):
            insort(lane, _entry(after))

    def _lane(self, device: Device) -> list[_Entry]:
        return self._lanes.setdefault((device.kind, device.health), [])

    def _offers(self, ask: Ask, siblings: Mapping[str, int] | None) -> Iterator[_Entry]:
        for kind in ask.kinds:
            for health in _healths:
                lane = self._lanes.get((kind, health), [])
                offers = lane[bisect_left(lane, (ask.compute, 0, "")) :] if lane else lane
                if siblings:
                    offers = sorted(offers, key=lambda entry: siblings.get(self._devices[entry[2]].node, 0))
                yield from offers


def _has_room(device: Device) -> bool:
    """Whether any ask at all could still fit; the full ones would be offered first, and refused each time."""
    is_whole = device.mode == "whole" and device.lease_count > 0
    return device.lease_count < device.lease_slots and not is_whole


def _entry(device: Device) -> _Entry:
    return device.compute_free, device.memory_free_mib, device.id
