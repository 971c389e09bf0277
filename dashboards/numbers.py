"""Numbers as a person reads them: one unit per kind of number, three or four digits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autopeft.domain.candidate import Candidate, Setting
from autopeft.domain.objective import Objective, Unit

NONE = "\u2013"
"""What stands in a table where there is no number."""
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_COUNTS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def text_of(value: float | None, unit: Unit) -> str:
    """A value with its unit: `66.4 %`, `312.5 MiB`, `12 min 30 s`, `73.7 k`; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    match unit:
        case Unit.FRACTION:
            return f"{100 * value:.1f} %"
        case Unit.CORRELATION:
            return f"{value:.3f}"
        case Unit.NUMBER:
            return f"{value:.4g}"
        case Unit.BYTES:
            return _scaled(value, _BYTES, "B")
        case Unit.SECONDS:
            return seconds(value)
        case Unit.COUNT:
            return f"{value:,.0f}" if abs(value) < 10_000 else _scaled(value, _COUNTS, "")


def seconds(value: float) -> str:
    """A duration: `0.41 ms`, `35.2 s`, `12 min 30 s`, `3 h 20 min`."""
    if abs(value) < 0.1:
        return f"{1000 * value:.3g} ms" if value else "0 s"
    if abs(value) < 100:
        return f"{value:.3g} s"
    if abs(value) < 7200:
        return f"{int(value // 60)} min {int(value % 60)} s"
    if abs(value) < 172_800:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    return f"{int(value // 86_400)} d {int(value % 86_400 // 3600)} h"


def setting(value: Setting) -> str:
    """A parameter's value: numbers in four digits, switches as yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def label(objective: Objective) -> str:
    """An objective's name for a person: `train_peak_bytes` is `Train peak`."""
    name = objective.name
    for suffix in ("_bytes", "_s"):
        name = name.removesuffix(suffix)
    return name.replace("_", " ").strip().capitalize() or objective.name


@dataclass(frozen=True)
class Scale:
    """What an axis multiplies values with, and the unit that makes."""

    factor: float
    unit: str
    log: bool = False
    """Whether the values span so much that a linear axis hides most of them."""


def scale_of(unit: Unit, values: Iterable[float]) -> Scale:
    """The axis scale for these values, after the largest of them."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest, smallest = max(finite, default=1.0), min(finite, default=1.0)
    log = unit in (Unit.BYTES, Unit.COUNT, Unit.SECONDS) and smallest > 0 and largest / smallest > 30
    match unit:
        case Unit.FRACTION:
            return Scale(100.0, "%")
        case Unit.CORRELATION | Unit.NUMBER:
            return Scale(1.0, "")
        case Unit.BYTES:
            return _axis(largest, _BYTES, "B", log)
        case Unit.COUNT:
            return Scale(1.0, "", log)
        case Unit.SECONDS:
            if largest < 0.1:
                return Scale(1000.0, "ms", log)
            return _axis(largest, ((7200.0, "h"), (120.0, "min")), "s", log, {"h": 3600.0, "min": 60.0})


def titled(name: str, unit: str) -> str:
    """An axis title: the name, and the unit in brackets where there is one."""
    return f"{name} ({unit})" if unit else name


def _axis(
    largest: float, steps: Iterable[tuple[float, str]], base: str, log: bool, sizes: dict[str, float] | None = None
) -> Scale:
    for size, unit in steps:
        if largest >= size:
            return Scale(1.0 / (sizes[unit] if sizes else size), unit, log)
    return Scale(1.0, base, log)


def _scaled(value: float, steps: Iterable[tuple[float, str]], base: str) -> str:
    for size, unit in steps:
        if abs(value) >= size:
            number = value / size
            return f"{number:.2f} {unit}" if abs(number) < 10 else f"{number:.1f} {unit}"
    return f"{value:,.0f} {base}".strip()


def candidate_lines(candidate: Candidate) -> list[tuple[str, str]]:
    """What is trained, one line per insertion."""
    lines = [("Learning rate", f"{candidate.learning_rate:.4g}")]
    for insertion in candidate.insertions:
        knobs = ", ".join(f"{name} {setting(value)}" for name, value in insertion.settings.items())
        where = ", ".join((f"layers {spans(insertion.layers)}", *insertion.modules))
        lines.append((insertion.method, f"{where}; {knobs}" if knobs else where))
    for what, chosen, settings in candidate.treatments():
        said = ", ".join(f"{name} {setting(value)}" for name, value in settings.items())
        lines.append((what.capitalize(), f"{chosen}; {said}" if said else chosen))
    if not candidate.insertions:
        lines.append(("Trained", "the head alone"))
    return lines


def spans(numbers: tuple[int, ...]) -> str:
    """Ascending whole numbers with neighbours joined: `0-3, 5`; `none` for none."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "none"
