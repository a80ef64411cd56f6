"""What only the command line can fail with."""

from __future__ import annotations

from contracts.errors import HeadraceError


class NotReady(HeadraceError):
    """What was waited for did not come true in time; waiting longer may help."""

    retryable = True
