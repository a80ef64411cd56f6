"""Which emissions have something that is to be stored: a tensor that is large, or many that are together."""

from __future__ import annotations

from typing import cast

import pytest

from contracts.adapters.blobs import Blobs
from contracts.names import ModelVersion
from contracts.payloads import ENVELOPE_BYTES
from contracts.plans import Answer, Ask, Emission, Node, Part, Plan
from contracts.tensors import Tensor
from workers.draining.large_hops import LargeHops
from workers.draining.publisher import Publisher

JOIN = Node(name="join", kind="reduce")
PLAN = Plan(pipeline=ModelVersion("p", 1), nodes=(JOIN,), partitions=1)
EACH, ROOM = 600, 1000
"""What a tensor may have, and all of a record."""


def concerns(emission: Emission) -> bool:
    large = LargeHops(
        cast("Blobs", None), cast("Publisher", None), record_bytes=ROOM + ENVELOPE_BYTES, tensor_bytes=EACH
    )
    return large.concerns(PLAN, emission)


def tensor(size: int, name: str = "x") -> Tensor:
    return Tensor(name, "UINT8", (size,), memoryview(bytes(size)))


def ask(inputs: int, carried: int) -> Ask:
    return Ask("a", (), ModelVersion("m", 1), (tensor(inputs),), {"s.y": tensor(carried, "s.y")}, {})


@pytest.mark.parametrize(
    ("emission", "is_large"),
    [
        (ask(EACH, 0), False),
        (ask(EACH + 1, 0), True),
        (ask(EACH, ROOM - EACH), False),
        (ask(EACH, ROOM - EACH + 1), True),
        (Part("join", (), "s", "value", {"s.y": tensor(EACH, "s.y")}), False),
        (Part("join", (), "s", "value", {"s.y": tensor(EACH + 1, "s.y")}), True),
        (Part("join", (), "s", "error", {"s!": tensor(EACH + 1, "s!")}), False),
        (Answer((tensor(ROOM),)), False),
        (Answer((tensor(ROOM // 2), tensor(ROOM // 2 + 1))), True),
        (Answer((tensor(ROOM + 1),)), True),
    ],
)
def test_a_step_is_stored_in_part_when_a_tensor_or_all_of_them_are_too_large(
    emission: Emission, *, is_large: bool
) -> None:
    assert concerns(emission) is is_large
