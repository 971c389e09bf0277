"""Ctrl-C: once ends a search in order, twice at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 130
"""What a shell reports of a program that Ctrl-C ended."""
PATIENCE_S = 4.0
"""So long a training step and the checkpoint after it may take before they are broken off."""


class Interrupted(KeyboardInterrupt):
    """Raised where a search may be left at once. Not an `Exception`: no evaluation may take it for a failure."""


class Interruption:
    """Takes SIGINT and SIGTERM for the time of a `with` block, where it runs in the main thread.

    The first signal is only noted, except inside `leaving_at_once`, where it raises `Interrupted`, if need be after
    what runs there has had a moment to come to a good place; the second ends the process: the store's transactions are
    whole or were not.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raises = False
        self._pause: Callable[[], bool] | None = None
        self._patience: threading.Timer | None = None
        self._overdue = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def take(self) -> None:
        """Take the signals, again where a library has put its own handlers in the place of these."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                found = signal.signal(number, self._on_signal)
                self._before.setdefault(number, found)

    @contextmanager
    def leaving_at_once(self, pause: Callable[[], bool] | None = None) -> Iterator[None]:
        """While inside, the first signal raises `Interrupted` wherever the code is.

        Where there is a `pause`, it is called first; if it returns True, what runs is left alone to end the block, for
        `PATIENCE_S` at most.
        """
        self._raises, self._pause = True, pause
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._raises, self._pause = False, None
            if self._patience is not None:
                self._patience.cancel()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._overdue:  # the timer's signal, not a person's second one
            self._overdue = False
            self._leave()
            return
        if self.requested:
            sys.stdout.flush()
            os._exit(EXIT_CODE)
        self.requested = True
        if self._raises and self._pause is not None and self._pause():
            self._patience = threading.Timer(PATIENCE_S, self._lose_patience)
            self._patience.daemon = True
            self._patience.start()
            return
        self._leave()

    def _leave(self) -> None:
        if self._raises:
            self._raises = False
            raise Interrupted

    def _lose_patience(self) -> None:
        self._overdue = True
        # A signal, because it wakes the main thread where it waits for something.
        os.kill(os.getpid(), signal.SIGINT)
