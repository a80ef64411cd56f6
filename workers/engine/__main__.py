"""The engine process of one lease: `python -P -m workers.engine --lease ID --token TOKEN --run-dir DIR`.

Exit status: 0 when the link ended, Stop or SIGTERM came; 1 when there was no ingest process to talk to, or it talked
nonsense; 3 when a model could not be loaded, which ingest was told with the reason; 4 when the process has lost its
device, so that only a new one can go on.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import logging
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from contracts.errors import ModelLoadError
from workers.backends.device_faults import DeviceLost
from workers.engine.confinement import confine
from workers.engine.engine import Engine, EngineLink

log = logging.getLogger("workers.engine")

ENDED, NO_INGEST, NOT_LOADED, NO_DEVICE = 0, 1, 3, 4
_connect_seconds: Final = 30.0  # ingest may be slow to come up on a busy machine
_retry_seconds: Final = 0.02


def connect(path: Path, seconds: float) -> socket.socket:
    """Connect to ingest's socket, waiting for it to appear; OSError when it does not."""
    deadline = time.monotonic() + seconds
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(str(path))
            return link
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            if time.monotonic() > deadline:
                raise
        time.sleep(_retry_seconds)


def run(lease: str, token: str, run_dir: Path) -> int:
    """Serve one lease; the process's exit status."""
    try:
        link = EngineLink(connect(run_dir / f"{lease}.sock", _connect_seconds))
        engine = Engine(link, token, run_dir / "compiled")
    except OSError as exc:
        log.error("no ingest process behind %s: %s", run_dir / f"{lease}.sock", exc)  # noqa: TRY400 - no stack needed
        return NO_INGEST
    try:
        if engine.load():
            # Until here SIGTERM ends the process at once; from here on the running batch is finished first.
            signal.signal(signal.SIGTERM, lambda *_: engine.quiet())
            engine.serve()
    except ModelLoadError as exc:
        log.error("%s", exc, exc_info=exc.__cause__)  # noqa: TRY400 - the cause is what helps, not our stack
        return NOT_LOADED
    except DeviceLost as exc:
        log.error("the device is lost to this process: %s", exc)  # noqa: TRY400 - the library's words say more
        return NO_DEVICE
    except ConnectionError as exc:
        log.info("the ingest process is gone: %s", exc)
    except (ValueError, TypeError):
        log.exception("the link speaks nonsense")
        return NO_INGEST
    finally:
        engine.close()
    return ENDED


def main() -> int:
    """Read the arguments, step into the box, serve."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine", description="The engine process of one lease.")
    parser.add_argument("--lease", required=True, help="id of the lease; names the socket")
    parser.add_argument("--token", required=True, help="fencing token of the lease")
    parser.add_argument("--run-dir", required=True, type=Path, help="folder of the socket")
    arguments = parser.parse_args()
    # Ctrl-C in a terminal reaches the whole group; when to stop is for the agent and ingest to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()  # a native library that crashes leaves our stack in the log
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # what a handler prints must not wait for a full buffer
    # Not by contracts.telemetry: the engine has no metrics of its own to pay the import for.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s engine %(name)s: %(message)s")
    confine()
    return run(arguments.lease, arguments.token, arguments.run_dir)


if __name__ == "__main__":
    sys.exit(main())
