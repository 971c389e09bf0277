"""The trial table: every trial with its numbers, and with the reason where it failed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from autopeft.domain.fidelity import stop_of
from autopeft.domain.measurements import Measurements, PeakMemory
from autopeft.domain.objective import Unit
from autopeft.domain.results import RunResults, ScoredTrial
from autopeft.domain.trial import Failure, TrialStatus

from .front import status_text
from .header import metric_unit, recommended, test_score
from .numbers import NONE, candidate_lines, label, seconds, setting, text_of
from .style import MANY_POINTS

_DETAIL_CHARACTERS = 4000
"""How much of a traceback's end is kept; a tenth of it in a run of very many trials."""


@dataclass(frozen=True)
class Column:
    """A column's heading and whether it sorts as a number."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Row:
    """One trial. Cells are pairs of what is sorted (None is last) and what is shown."""

    number: int
    status: str
    on_front: bool
    picks: tuple[str, ...]
    cells: tuple[tuple[float | str | None, str], ...]
    details: tuple[tuple[str, str], ...]
    """Name and text of everything else that is known."""
    failure: str
    """Reason and sentence, empty where there is no failure."""
    traceback: str


@dataclass(frozen=True)
class TrialsRecord:
    """All trials in order of number."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def trials_record(results: RunResults) -> TrialsRecord:
    """Number, status, objectives, test score, seconds, then parameters; what does not fit is in the details."""
    having = Counter(name for one in results.trials for name in one.trial.parameters)
    # What few trials have, as a method's own knob, comes last: its column is mostly empty.
    names = sorted(having, key=lambda name: 4 * having[name] < len(results.trials))
    numeric = {
        name: all(
            isinstance(value, int | float) and not isinstance(value, bool)
            for one in results.trials
            if (value := one.trial.parameters.get(name)) is not None
        )
        for name in names
    }
    tested = any(one.trial.test_quality for one in results.trials)
    columns = [Column("Trial", True), Column("Status", False)]
    columns += [Column(label(objective), True) for objective in results.objectives]
    columns += [Column(f"Test {results.record.task.metric}", True)] if tested else []
    columns += [Column("Time", True)]
    columns += [Column(name, numeric[name]) for name in names]
    picks, full, front = recommended(results), len(results.trials) <= MANY_POINTS, results.front.numbers
    rows = tuple(
        Row(
            number=one.trial.number,
            status=one.trial.status.value,
            on_front=one.trial.number in front,
            picks=picks.get(one.trial.number, ()),
            cells=tuple(_cells(results, one, numeric, tested)),
            details=tuple(_details(one, full)),
            failure=failure_text(one.trial.failure),
            traceback=_end(one.trial.failure, _DETAIL_CHARACTERS if full else _DETAIL_CHARACTERS // 10),
        )
        for one in results.trials
    )
    return TrialsRecord(tuple(columns), rows)


def failure_text(failure: Failure | None) -> str:
    """Reason and sentence of a failure; empty where there is none."""
    return "" if failure is None else f"{failure.reason.value.replace('_', ' ')}: {failure.text}"


def _end(failure: Failure | None, characters: int) -> str:
    return "" if failure is None else failure.detail[-characters:]


def _cells(
    results: RunResults, one: ScoredTrial, numeric: dict[str, bool], tested: bool
) -> list[tuple[float | str | None, str]]:
    """Cells in the order of the columns; `numeric` says per parameter how it sorts."""
    trial = one.trial
    metric, stop = results.record.task.metric, stop_of(trial, results.record.spec.training.rungs)
    status = status_text(results, trial)
    if stop is not None and metric in stop.quality:
        status += f", {metric.replace('_', ' ')} {text_of(stop.quality[metric], metric_unit(metric))}"
    cells: list[tuple[float | str | None, str]] = [(trial.number, str(trial.number)), (status, status)]
    for index, objective in enumerate(results.objectives):
        value = one.values[index] if one.values else objective(trial.measurements) if trial.measurements else math.nan
        if objective.is_quality and trial.status is TrialStatus.STOPPED_EARLY:
            value = math.nan  # what a rung saw is no result; the status says it
        cells.append((value if math.isfinite(value) else None, text_of(value, objective.unit)))
    if tested:
        score = test_score(results, one)
        cells.append((score, text_of(score, metric_unit(results.record.task.metric))))
    cells.append((trial.seconds or None, seconds(trial.seconds) if trial.seconds else NONE))
    for name, is_number in numeric.items():
        chosen = trial.parameters.get(name)
        text = NONE if chosen is None else setting(chosen)
        cells.append((None if chosen is None else float(chosen) if is_number else text, text))
    return cells


def _details(one: ScoredTrial, full: bool) -> list[tuple[str, str]]:
    trial = one.trial
    lines = candidate_lines(trial.candidate)
    lines.append(("Proposed by", trial.origin))
    if full:
        lines += [("Digest", trial.digest), ("Seed", str(trial.seed)), ("Attempts", str(trial.attempt))]
        lines += [("Worker", trial.worker)] if trial.worker else []
        lines += [("GPU time", seconds(trial.gpu_seconds))] if trial.gpu_seconds else []
    if trial.failure is not None and trial.failure.violation is not None:
        lines.append(("Above the limit by", f"{100 * trial.failure.violation:.0f} %"))
    if trial.measurements is not None:
        lines += measured_lines(trial.measurements) if full else measured_lines(trial.measurements)[:4]
    for name, value in (trial.test_quality or {}).items():
        lines.append((f"Test {name}", text_of(value, metric_unit(name))))
    return lines


def measured_lines(measured: Measurements) -> list[tuple[str, str]]:
    """Every measured number with its unit; what was not measured has no line."""
    lines: list[tuple[str, str]] = []
    if measured.rungs:
        reports = []
        for rung in measured.rungs:
            scores = ", ".join(f"{name} {text_of(value, metric_unit(name))}" for name, value in rung.quality.items())
            reports.append(f"{100 * rung.fidelity:.0f} %: {scores}, loss {rung.train_loss:.3f}")
        lines.append(("Validation on the way", " → ".join(reports)))
    for name, value in measured.quality.items():
        lines.append((f"Validation {name}", text_of(value, metric_unit(name))))
    peaks = (
        ("Training peak", measured.train_peak),
        ("Training peak foretold", measured.foretold_peak),
        ("Estimation peak", measured.estimation_peak),
        ("Estimation peak foretold", measured.foretold_estimation_peak),
        ("Inference peak", measured.infer_peak),
        ("Loading peak", measured.load_peak),
        ("Training peak elsewhere", measured.elsewhere_peak),
    )
    lines += [(name, peak_text(peak)) for name, peak in peaks if peak is not None]
    if measured.planned_steps:
        lines.append(("Steps", f"{measured.steps:,} of {measured.planned_steps:,}"))
    numbers = (
        ("Mean of the step peaks", measured.train_mean_bytes, Unit.BYTES),
        ("Training", measured.train_s, Unit.SECONDS),
        ("of it the estimation", measured.estimation_s, Unit.SECONDS),
        ("Pruning step", measured.pruning_s, Unit.SECONDS),
        ("copied for it", measured.copied_bytes, Unit.BYTES),
        ("Validation pass", measured.evaluate_s, Unit.SECONDS),
        ("Latency per row", measured.latency_s, Unit.SECONDS),
        ("Insert and remove", measured.setup_s, Unit.SECONDS),
        ("Tokens trained on", measured.train_tokens, Unit.COUNT),
        ("Trainable parameters", measured.trainable_parameters, Unit.COUNT),
        ("of them in the head", measured.head_parameters, Unit.COUNT),
        ("Parameters in all", measured.total_parameters, Unit.COUNT),
        ("kept by the pruning", measured.kept_parameters, Unit.COUNT),
        ("Adapter file", measured.adapter_bytes, Unit.BYTES),
    )
    lines += [(name, text_of(float(value), unit)) for name, value, unit in numbers if value is not None]
    if measured.inserted_modules:
        lines.append(("Modules inserted", f"{len(measured.inserted_modules)}"))
    device = " · ".join(part for part in (measured.device, measured.dtype) if part)
    return lines + ([("Device", device)] if device else [])


def peak_text(peak: PeakMemory) -> str:
    """Live bytes, reserved bytes where they are known, and how they were obtained."""
    reserved = f", {text_of(peak.reserved_bytes, Unit.BYTES)} reserved" if peak.reserved_bytes is not None else ""
    return f"{text_of(peak.live_bytes, Unit.BYTES)}{reserved} ({peak.source.value.replace('_', ' ')})"
