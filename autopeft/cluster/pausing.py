"""Telling Ray workers that the search is about to be left, so that they save where their trials stand."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

PATIENCE_S = 4.0
"""So long the driver waits for workers that are in a step."""
POLL_S = 0.3


class PauseFlag:
    """A flag that every process of a Ray cluster can see, by a name of its own for each search.

    A worker that trains takes no calls, so it looks at the flag from a thread.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or f"autopeft-pause-{uuid.uuid4().hex}"
        self._since: float | None = None

    def set(self) -> None:
        """Put it up, once."""
        if self._since is None:
            self._since = time.monotonic()
            _internal_kv_put(self.name, b"1")

    def clear(self) -> None:
        """Leave no trace of it in a cluster that goes on."""
        if self._since is not None:
            _internal_kv_del(self.name)

    @property
    def overdue(self) -> bool:
        """Whether it was put up so long ago that nobody is waited for any more."""
        return self._since is not None and time.monotonic() - self._since > PATIENCE_S

    def watch(self, told: Callable[[], object]) -> None:
        """Call `told`, from a thread of this process, again and again while the flag is up."""

        def look() -> None:
            while True:
                time.sleep(POLL_S)
                try:
                    if _internal_kv_get(self.name) is not None:
                        told()
                except Exception:
                    # The cluster is going down, or a call got lost: nothing that training should hear of.
                    continue

        threading.Thread(target=look, name="autopeft-pause", daemon=True).start()
