"""Numbers and tables as a person reads them in a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.fidelity import Saved, Stop
from autopeft.domain.layout import Role
from autopeft.domain.objective import Direction, Objective, Unit
from autopeft.domain.repetition import Estimate
from autopeft.domain.results import Front, ScoredTrial, quality_column
from autopeft.domain.trial import Trial, TrialStatus

STATUS_STYLE = {
    TrialStatus.PENDING: "dim",
    TrialStatus.RUNNING: "cyan",
    TrialStatus.COMPLETE: "green",
    TrialStatus.INFEASIBLE: "yellow",
    TrialStatus.INVALID: "magenta",
    TrialStatus.CRASHED: "red",
    TrialStatus.STOPPED_EARLY: "blue",
    TrialStatus.LOST: "red",
    TrialStatus.CANCELLED: "dim",
}


_SHORT = {
    Role.QUERY.value: "q",
    Role.KEY.value: "k",
    Role.VALUE.value: "v",
    Role.QKV.value: "qkv",
    Role.ATTENTION_OUTPUT.value: "o",
    Role.FFN_IN.value: "in",
    Role.FFN_GATE.value: "gate",
    Role.FFN_OUT.value: "out",
}
PIPE_WIDTH = 200
"""Columns where nobody looks at a terminal, so that no value is cut."""


def output() -> Console:
    """Standard output, for what a verb answers."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_json(value: Any) -> None:
    """JSON on standard output, for other programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def quantity(value: float | None, unit: Unit) -> str:
    """`0.731`, `143.2 MiB`, `12.3 s`, `74,506`; a dash for nothing."""
    if value is None:
        return "-"
    if unit is Unit.BYTES:
        return bytes_text(value)
    if unit is Unit.SECONDS:
        return f"{value * 1000:.2f} ms" if value < 1 else f"{value:.1f} s"
    if unit is Unit.COUNT:
        return f"{value:,.0f}"
    return f"{value:.3f}"


def bytes_text(value: float) -> str:
    """Bytes in the unit that keeps one to four digits before the point."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def seconds_text(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ranges(numbers: Sequence[int]) -> str:
    """`0-5`, `3-5`, `0,2,5`; `none` for no number."""
    if not numbers:
        return "none"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def setting(value: Any) -> str:
    """A parameter's value: four significant digits for floats."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def knob_text(insertion: Insertion) -> str:
    """The setting that decides how much an insertion trains: `r16`, `size 48`; empty where its method has none."""
    from autopeft.evaluate.methods import METHODS

    method = METHODS.get(insertion.method)
    knob = method.facts.knob if method is not None else "rank"
    if knob is None or knob not in insertion.settings:
        return ""
    value = setting(insertion.settings[knob])
    return f"r{value}" if knob == "rank" else f"{knob} {value}"


def candidate_text(trial: Trial) -> str:
    """What a candidate is, in one line: `rslora r16 · q,v · layers 3-5 · lr 0.0012`.

    Insertions in the same layers stand together: `serial size 24 on out + prefix length 6 · layers 0,2 · lr 0.0001`.
    """
    return configuration_text(trial.candidate)


def configuration_text(candidate: Candidate) -> str:
    """The same of a candidate that is no trial."""
    insertions, parts = candidate.insertions, []
    for layers in dict.fromkeys(one.layers for one in insertions):
        together = [one for one in insertions if one.layers == layers]
        named = [f"{one.method} {knob_text(one)}".rstrip() for one in together]
        modules = [",".join(short for role, short in _SHORT.items() if role in one.modules) for one in together]
        if len(together) == 1:
            parts += [named[0], *filter(None, modules)]
        else:
            parts.append(" + ".join(f"{name} on {at}" if at else name for name, at in zip(named, modules, strict=True)))
        parts.append(f"layer{'s' if len(layers) != 1 else ''} {ranges(layers)}")
    if not parts:
        parts.append("head only")
    parts += [chosen for _, chosen, _ in candidate.treatments()]
    parts.append(f"lr {setting(candidate.learning_rate)}")
    return " · ".join(parts)


def stop_text(stop: Stop, metric: str) -> str:
    """How far a trial came that was stopped early, and how good it was there: `stopped at 1/3, accuracy 0.410`."""
    value = stop.quality.get(metric)
    return f"stopped at {stop.share}" + ("" if value is None else f", {metric} {value:.3f}")


def saved_text(saved: Saved) -> str:
    """What early stopping saved: `1,234 training samples (60 steps, 61 % of what was planned) by stopping 3 trials`."""
    trials = f"{saved.trials} trial{'s' if saved.trials != 1 else ''}"
    return (
        f"{saved.samples:,} training samples ({saved.steps:,} steps, {saved.share:.0%} of what was planned) "
        f"by stopping {trials} early"
    )


def observed_text(estimate: Estimate, unit: Unit) -> str:
    """What was observed: `0.731 (1)`, or mean, sample standard deviation and count: `0.731 ± 0.012 (3)`."""
    spread = "" if estimate.spread is None else f" ± {quantity(estimate.spread, unit)}"
    return f"{quantity(estimate.mean, unit)}{spread} ({estimate.count})"


def front_table(
    front: Front,
    metric: str,
    with_test: bool,
    limit: int | None = None,
    title: str | None = None,
    estimates: Mapping[int, Estimate] | None = None,
) -> Table:
    """The front, one row a point, the knee marked.

    `estimates` are those of the candidates' quality where any was repeated: the front is then one of posterior means,
    and what was observed stands beside them.
    """
    quality = quality_column(front.objectives) if estimates else None
    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column("trial", justify="right")
    for index, objective in enumerate(front.objectives):
        arrow = "↑" if objective.direction is Direction.MAXIMIZE else "↓"
        believed = ", posterior mean" if index == quality else ""
        table.add_column(f"{objective.name}{believed} {arrow}", justify="right", no_wrap=True)
    if quality is not None:
        table.add_column(f"{front.objectives[quality].name} observed (times)", justify="right", no_wrap=True)
    if with_test:
        table.add_column(f"test {metric}", justify="right", no_wrap=True)
    table.add_column("configuration", overflow="ellipsis", no_wrap=limit is not None)
    members = front.members if limit is None else front.members[-limit:]
    names = picks(front)
    for one in members:
        test = (one.trial.test_quality or {}).get(metric)
        mark = names.get(one.trial.number, "")
        table.add_row(
            Text(str(one.trial.number), style="bold" if mark else ""),
            *(
                quantity(value, objective.unit)
                for value, objective in zip(one.values or (), front.objectives, strict=True)
            ),
            *_observed(one, front, quality, estimates or {}),
            *([quantity(test, Unit.FRACTION)] if with_test else []),
            Text.assemble(candidate_text(one.trial), ("  " + mark, "bold green") if mark else ""),
        )
    return table


def _observed(one: ScoredTrial, front: Front, quality: int | None, estimates: Mapping[int, Estimate]) -> list[str]:
    if quality is None:
        return []
    estimate = estimates.get(one.trial.number)
    return ["-" if estimate is None else observed_text(estimate, front.objectives[quality].unit)]


def picks(front: Front) -> dict[int, str]:
    """Trial numbers of the recommended points, with what each is recommended as."""
    named: dict[int, str] = {}
    if front.members:
        for what in ("knee", "most-accurate", "smallest"):
            number = front.pick(what).trial.number
            named[number] = f"{named[number]}, {what}" if number in named else what
    return named


def scored_values(objectives: Sequence[Objective], one: ScoredTrial) -> dict[str, float]:
    """Objective values by name; empty where the trial has none."""
    return {objective.name: value for objective, value in zip(objectives, one.values or (), strict=bool(one.values))}
