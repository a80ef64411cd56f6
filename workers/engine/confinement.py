"""What the engine gives up before it touches a model, because models are code until proven data.

Its environment holds no credentials and its descriptors lead to one socket and one slots file already, since that is
how it was started. Here it adds what only a process can do to itself; each step is skipped where the platform has no
such thing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Final

_set_no_new_privileges: Final = 38  # PR_SET_NO_NEW_PRIVS of prctl(2)
_oom_score: Final = "500"  # of -1000 to 1000, neutral 0; raising it needs no privilege


def confine() -> None:
    """Leave no core dumps (they hold requests), gain no privileges, be the first to go when memory runs out.

    When the kernel must kill a process, the engine is the right one: the ingest process has a new one started and
    repeats what it lost.
    """
    os.umask(0o077)
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_set_no_new_privileges, 1, 0, 0, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_oom_score)
