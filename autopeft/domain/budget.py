"""What a search may spend, what it has spent, and which limit ends it first."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from autopeft.domain.errors import Problem, UserError

_PART = re.compile(r"(?P<plus>\+?)(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>trials?|gpu-?h|gpu-?hours?|d|h|m|min|s)?")
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_ALLOWED = "64, 64trials, 90s, 30m, 2h, 1d, 8gpu-h, or several joined by commas"


class Spent(BaseModel):
    """What a search has used so far, failures and earlier sessions included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = 0
    """Trials that were started and ended, in whatever way; those refused before they trained do not count."""
    seconds: float = 0.0
    """Wall seconds in which a session was open on the run."""
    gpu_seconds: float = 0.0
    """Seconds of every trial times the GPUs it held."""


class Budget(BaseModel):
    """Limits of a search; the first to run out ends it, `None` is no limit of that kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int | None = None
    seconds: float | None = None
    gpu_seconds: float | None = None

    @model_validator(mode="after")
    def _some_limit_above_zero(self) -> Budget:
        limits = (self.trials, self.seconds, self.gpu_seconds)
        if all(limit is None for limit in limits):
            raise ValueError(f"names no limit; allowed: {_ALLOWED}")
        if any(limit is not None and not 0 < limit < math.inf for limit in limits):
            raise ValueError(f"every limit must be above 0; allowed: {_ALLOWED}")
        return self

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `64`, `64trials`, `90s`, `30m`, `2h`, `1d`, `8gpu-h` or several joined by commas.

        Raises:
            UserError: where a part cannot be read, is 0, or a kind of limit comes twice.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            match = _PART.fullmatch(part.strip().lower())
            if match is None:
                raise _unreadable(text, f"'{part.strip()}' cannot be read")
            number, unit = float(match["number"]), match["unit"] or "trials"
            kind = "trials" if unit.startswith("t") else "gpu_seconds" if unit[0] == "g" else "seconds"
            if kind in limits:
                raise _unreadable(text, f"'{part.strip()}' is a second limit of the same kind")
            if number == 0 or (kind == "trials" and number != int(number)):
                raise _unreadable(text, f"'{part.strip()}' is not a whole number of trials or a time above 0")
            limits[kind] = number * (3600.0 if kind == "gpu_seconds" else _SECONDS.get(unit, 1.0))
        trials = limits.get("trials")
        return cls(
            trials=None if trials is None else int(trials),
            seconds=limits.get("seconds"),
            gpu_seconds=limits.get("gpu_seconds"),
        )

    def plus(self, more: Budget) -> Budget:
        """Every limit that `more` names, raised by it; a kind that was unlimited stays unlimited."""

        def raised(now: float | None, by: float | None) -> float | None:
            return None if now is None else now + (by or 0)

        trials = raised(self.trials, more.trials)
        return Budget(
            trials=None if trials is None else int(trials),
            seconds=raised(self.seconds, more.seconds),
            gpu_seconds=raised(self.gpu_seconds, more.gpu_seconds),
        )

    def limit(self, kind: str) -> str:
        """One of its limits with its unit: `12 trials`, `2h`, `8 GPU-hours`; `kind` as `used_up_by` names it."""
        if kind == "trials":
            return f"{self.trials} trials"
        if kind == "seconds":
            return duration(self.seconds or 0.0)
        return f"{(self.gpu_seconds or 0.0) / 3600:g} GPU-hours"

    def used_up_by(self, spent: Spent) -> str | None:
        """The name of the first limit that `spent` reaches (`trials`, `seconds`, `gpu_seconds`), or None."""
        for kind in ("trials", "seconds", "gpu_seconds"):
            limit = getattr(self, kind)
            if limit is not None and getattr(spent, kind) >= limit:
                return kind
        return None

    def share_used(self, spent: Spent) -> float:
        """The largest used share of any limit, from 0 to 1."""
        shares = [
            getattr(spent, kind) / limit
            for kind in ("trials", "seconds", "gpu_seconds")
            if (limit := getattr(self, kind)) is not None
        ]
        return float(min(1.0, max(shares)))

    def __str__(self) -> str:
        parts = []
        if self.trials is not None:
            parts.append(f"{self.trials} trial{'s' if self.trials != 1 else ''}")
        if self.seconds is not None:
            parts.append(duration(self.seconds))
        if self.gpu_seconds is not None:
            parts.append(f"{self.gpu_seconds / 3600:g}gpu-h")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the largest unit that keeps the number whole or short: `90s`, `30m`, `2h`."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def _unreadable(text: str, found: str) -> UserError:
    return UserError(
        Problem("budget", f"{found} in '{text}'", _ALLOWED, "For example: --budget 64 or --budget 2h,8gpu-h.")
    )


def _from_text(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | str):
        try:
            return Budget.parse(str(value))
        except UserError as error:
            raise ValueError(str(error)) from None
    return value


BudgetField = Annotated[Budget, BeforeValidator(_from_text, json_schema_input_type=Budget | int | str)]
"""A `Budget` that a spec file may also write as `64` or `2h,8gpu-h`."""
