"""The completer: a thread that waits for launched batches, in the order of their launch, and answers.

So the launcher can give the device the next batch while one is computed. Waiting for a device holds no lock of the
interpreter. Only models whose device works beside the host have this thread; the others are answered by the launcher.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from workers.link import Done, Failed


class InFlight(Protocol):
    """A launched batch."""

    def finish(self, began_ns: int) -> Done | Failed:
        """Wait for its result. The device was busy with others until `began_ns`, by time.perf_counter_ns."""
        ...


class Completer:
    """Answers launched batches with `send`; when it cannot go on it calls `stop`, and `close` raises why."""

    def __init__(self, send: Callable[[Done | Failed], None], stop: Callable[[], None]) -> None:
        self._send, self._stop = send, stop
        self._launched: queue.SimpleQueue[InFlight | Failed | None] = queue.SimpleQueue()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="completer", daemon=True)
        self._thread.start()

    def put(self, launched: InFlight | Failed) -> None:
        """Answer this when its turn has come; what could not be launched is answered as it is."""
        self._launched.put(launched)

    def close(self) -> None:
        """Answer what was launched. Raises what ended the thread."""
        self._launched.put(None)
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        busy_until = 0
        try:
            while (launched := self._launched.get()) is not None:
                if isinstance(launched, Failed):
                    self._send(launched)
                else:
                    answer = launched.finish(busy_until)
                    busy_until = time.perf_counter_ns()
                    self._send(answer)
        except BaseException as exc:  # noqa: BLE001 - raised again by `close`, in the launcher's thread
            self._fault = exc
            self._stop()
