"""A small program in place of ingest and engine, for tests of the agent alone.

Started as `stand_in_ingest`, `stand_in_engine` or `stand_in_joiner`. It leaves the files that the real ones leave,
writes down its environment, and waits. Leases whose id contains `stubborn` ignore SIGTERM; those with `hopeless` exit
at once; engines of those with `parent` start a child.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


def main(role: str) -> None:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    lease, folder = options["--lease"], Path(options["--run-dir"])
    shared = Path("/dev/shm")  # noqa: S108 - as the real one does; spelt out, since its imports take long
    slots = (shared if shared.is_dir() else Path(tempfile.gettempdir())) / f"headrace-{lease}"
    if "hopeless" in lease and role == "ingest":
        raise SystemExit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in lease else signal.SIG_DFL)
    listener = socket.socket(socket.AF_UNIX)
    if role == "ingest":
        slots.touch(mode=0o600)
        listener.bind(str(folder / f"{lease}.sock"))
    elif "parent" in lease:
        child = subprocess.Popen(["/bin/sleep", "600"])
        (folder / f"{lease}.child").write_text(str(child.pid))
    told = {"pid": os.getpid(), "environment": dict(os.environ), "arguments": sys.argv[1:]}
    draft = folder / f"{lease}.{role}.draft"
    draft.write_text(json.dumps(told))
    draft.rename(folder / f"{lease}.{role}.seen")
    while True:
        signal.pause()
