"""Ctrl-C: once ends a search in order, twice at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 130
"""What a shell reports of a program that Ctrl-C ended."""


class Interrupted(KeyboardInterrupt):
    """Raised where a search may be left at once. Not an `Exception`: no evaluation may take it for a failure."""


class Interruption:
    """Takes SIGINT and SIGTERM for the time of a `with` block, where it runs in the main thread.

    The first signal is only noted, except inside `leaving_at_once`, where it raises `Interrupted`; the second ends the
    process: the store's transactions are whole or were not.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raises = False
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
    def leaving_at_once(self) -> Iterator[None]:
        """While inside, the first signal raises `Interrupted` wherever the code is."""
        self._raises = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._raises = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            sys.stdout.flush()
            os._exit(EXIT_CODE)
        self.requested = True
        if self._raises:
            self._raises = False
            raise Interrupted
