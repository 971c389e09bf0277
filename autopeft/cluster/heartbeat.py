"""Keeping a session's lease while its process lives."""

from __future__ import annotations

import threading
from collections.abc import Callable

from autopeft.domain.errors import RunBusyError

PERIOD_S = 1.0


class Heartbeat:
    """Calls `beat` about every second from a thread of this process.

    A thread and not the search loop, because the loop stands still for as long as a trial trains in this process; and
    no other process, because a heart that beats after its process died is a lie.
    """

    def __init__(self, beat: Callable[[], None], period_s: float = PERIOD_S) -> None:
        self._beat = beat
        self._period_s = period_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._taken: RunBusyError | None = None

    def start(self) -> None:
        """Begin beating; once."""
        self._thread = threading.Thread(target=self._run, name="autopeft-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what a beat found.

        Raises:
            RunBusyError: where the lease ran out (the process slept) and another process took the run.
        """
        if self._taken is not None:
            raise self._taken

    def stop(self) -> None:
        """End beating; returns when no beat is under way."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            try:
                self._beat()
            except RunBusyError as error:
                self._taken = error
                return
            except Exception:
                # A database that is away for a moment costs a beat; if it stays away, the loop's own writes say so.
                continue
