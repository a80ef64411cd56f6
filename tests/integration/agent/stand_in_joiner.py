"""`python -m tests.integration.agent.stand_in_joiner`."""

from __future__ import annotations

from tests.integration.agent.stand_in import main

if __name__ == "__main__":
    main("joiner")
