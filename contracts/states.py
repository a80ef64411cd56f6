"""States of a lease, a node and a request as tables; an edge that is not here does not exist.

The lease's edges are carried out by the Lua scripts, which refuse every other one; a test walks each operation through
each state and compares. `deleted` is the absence of the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StateTable:
    """The allowed edges of one kind of thing."""

    name: str
    edges: Mapping[str, frozenset[str]]

    def allows(self, before: str, after: str) -> bool:
        """Whether `before` may turn into `after`. Unknown states raise ValueError."""
        if before not in self.edges or after not in self.edges:
            msg = f"{before if before not in self.edges else after!r} is no state of a {self.name}"
            raise ValueError(msg)
        return after in self.edges[before]

    def check(self, before: str, after: str) -> str:
        """Return `after`; raise ValueError when there is no such edge."""
        if not self.allows(before, after):
            ways = ", ".join(sorted(self.edges[before])) or "nothing"
            msg = f"a {self.name} that is {before} cannot become {after}; it can become {ways}"
            raise ValueError(msg)
        return after

    def is_final(self, state: str) -> bool:
        """Whether nothing follows."""
        return not self.edges[state]


def _table(name: str, edges: Mapping[str, str]) -> StateTable:
    return StateTable(name, {state: frozenset(after.split()) for state, after in edges.items()})


LEASE = _table(
    "lease",
    {
        "reserved": "active quarantine",  # bound when the model is loaded; drained, released, expired or node dead
        "active": "draining quarantine",
        "draining": "quarantine",
        "quarantine": "deleted",  # only by confirmation that the processes are gone
        "deleted": "",
    },
)

NODE = _table(
    "node",
    {
        "ready": "suspect draining dead",
        "suspect": "ready draining dead",
        "draining": "cordoned ready dead",
        "cordoned": "ready dead",
        "dead": "ready draining cordoned deleted",  # registers again, into what an operator had asked for
        "deleted": "",
    },
)

REQUEST = _table(
    "request",
    {
        "published": "queued answered",  # answered: undecodable, invalid or expired when taken
        "queued": "in_flight answered",  # answered: expired or cancelled when a batch was cut
        "in_flight": "queued answered",  # queued again: its batch failed and is bisected
        "answered": "committed",
        "committed": "",
    },
)
