"""The front and the trial table as rows, as `front.csv` and as `trials.parquet`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from autopeft.domain.candidate import Setting
from autopeft.domain.repetition import Beliefs, believed
from autopeft.domain.results import RunResults, ScoredTrial
from autopeft.export.files import write_whole

Cell = bool | int | float | str | None
"""`None` is a value that was not measured, or a parameter that was not active."""

_TYPES = {
    "trial": "int64",
    "status": "string",
    "digest": "string",
    "origin": "string",
    "failure": "string",
    "failure_text": "string",
    "seconds": "float64",
    "gpu_seconds": "float64",
    "attempt": "int64",
    "seed": "int64",
    "worker": "string",
    "created_at": "float64",
    "started_at": "float64",
    "finished_at": "float64",
    "steps": "Int64",
    "planned_steps": "Int64",
    "fidelity": "float64",
    "train_s": "float64",
    "train_tokens": "Int64",
    "evaluate_s": "float64",
    "latency_s": "float64",
    "setup_s": "float64",
    "estimation_s": "float64",
    "pruning_s": "float64",
    "trainable_parameters": "Int64",
    "head_parameters": "Int64",
    "total_parameters": "Int64",
    "kept_parameters": "Int64",
    "adapter_bytes": "Int64",
    "train_peak_bytes": "Int64",
    "train_peak_source": "string",
    "train_mean_bytes": "Int64",
    "infer_peak_bytes": "Int64",
    "infer_peak_source": "string",
    "estimation_peak_bytes": "Int64",
    "estimation_peak_source": "string",
    "copied_bytes": "Int64",
    "load_peak_bytes": "Int64",
    "load_peak_source": "string",
    "foretold_peak_bytes": "Int64",
    "foretold_peak_source": "string",
    "calibrated_peak_bytes": "Int64",
    "elsewhere_peak_bytes": "Int64",
    "elsewhere_peak_source": "string",
    "device": "string",
    "dtype": "string",
    "candidate": "string",
}
_FIRST = ("trial", "status", "digest")
_PEAKS = ("train", "infer", "estimation", "load", "foretold", "elsewhere")
"""Of `Measurements`, without `_peak`."""
_OF_PEAKS = ("peak_bytes", "peak_source")


def parameter_names(results: RunResults, parameters: Sequence[str] = ()) -> list[str]:
    """Names of the parameters in the order of the space: `parameters`, then others that a trial names.

    Without `parameters`, the order is the one in which the trials name them; a trial lists its active parameters in
    the order of the space, so a name goes behind the one that precedes it there.
    """
    names = list(parameters)
    for one in results.trials:
        place = 0
        for name in one.trial.parameters:
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return names


def front_rows(results: RunResults, parameters: Sequence[str] = ()) -> list[dict[str, Cell]]:
    """One row per point of the front: `trial`, the objectives, `test_score`, the parameters; fit for JSON.

    Where a candidate was repeated, the objective of quality is a posterior mean, and four columns stand behind the
    objectives, `OBJECTIVE_observed` (mean), `_observed_sd`, `_observations` and `_posterior_sd`.

    Args:
        results: Of one run.
        parameters: Names of all parameters of the space in its order; by default, those that a trial names.
    """
    metric = results.record.task.metric
    names = parameter_names(results, parameters)
    beliefs = believed(results.objectives, results.trials)
    columns = _parameter_columns(names, set(_front_columns(results, beliefs)))
    return [
        {
            "trial": one.trial.number,
            **_objectives(results, one),
            **_estimate(results, beliefs, one.trial.number),
            "test_score": _finite((one.trial.test_quality or {}).get(metric)),
            **{column: one.trial.parameters.get(name) for name, column in zip(names, columns, strict=True)},
        }
        for one in results.front.members
    ]


def trial_rows(results: RunResults, parameters: Sequence[str] = ()) -> list[dict[str, Cell]]:
    """One row per trial, every status included: what `trials.parquet` holds; fit for JSON.

    An objective is empty unless the trial completed; what was measured before it ended is in the columns behind. Where
    a candidate was repeated, its first trial has the posterior mean of the quality (`OBJECTIVE_posterior`) and what all
    its trainings observed, and `repeats` of the others names that trial.
    """
    beliefs = believed(results.objectives, results.trials)
    names = parameter_names(results, parameters)
    task = results.record.task
    scores = [f"{split}_{metric}" for split in ("validation", "test") for metric in task.metrics]
    columns = _parameter_columns(names, {*_TYPES, *scores, *(one.name for one in results.objectives)})
    rows = []
    for one in results.trials:
        fixed = {**_fixed(one), **_scores(one, task.metrics)}
        head = {name: fixed.pop(name) for name in _FIRST}
        values = {column: one.trial.parameters.get(name) for name, column in zip(names, columns, strict=True)}
        objectives = _objectives(results, one)
        more: dict[str, Cell] = {}
        if beliefs.estimates:
            more = {
                "repeats": beliefs.first.get(one.trial.number),
                **_estimate(results, beliefs, one.trial.number, True),
            }
        rest = {name: value for name, value in fixed.items() if name not in objectives}
        rows.append({**head, **objectives, **more, **values, **rest})
    return rows


def write_front(results: RunResults, path: Path, parameters: Sequence[str] = ()) -> Path:
    """Write `front.csv`, columns and arguments as `front_rows`; what is missing is an empty field."""
    rows = front_rows(results, parameters)
    names = parameter_names(results, parameters)
    taken = _front_columns(results, believed(results.objectives, results.trials))
    header = [*taken, *_parameter_columns(names, set(taken))]

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([row[column] for column in header] for row in rows)

    return write_whole(path, write)


def write_trials(results: RunResults, path: Path, parameters: Sequence[str] = ()) -> Path:
    """Write `trials.parquet`, columns and arguments as `trial_rows`.

    A parameter whose values are of one kind keeps it (whole numbers stay whole beside missing ones); a mixed one
    becomes text.
    """
    rows = trial_rows(results, parameters)
    objectives = [one.name for one in results.objectives]
    columns: list[str] = list(rows[0]) if rows else [*_FIRST, *objectives]
    data = {}
    for column in columns:
        values = [row[column] for row in rows]
        kind = "float64" if column in objectives else _TYPES.get(column) or _kind(values)
        if kind == "string":
            values = [value if value is None else str(value) for value in values]
        data[column] = pd.Series(values, dtype=kind)
    table = pd.DataFrame(data)
    return write_whole(path, lambda partial: table.to_parquet(partial, index=False))


def _front_columns(results: RunResults, beliefs: Beliefs) -> list[str]:
    """Columns of the front before the parameters."""
    objectives = [one.name for one in results.objectives]
    return ["trial", *objectives, *_estimate(results, beliefs, -1), "test_score"]


def _estimate(results: RunResults, beliefs: Beliefs, number: int, posterior: bool = False) -> dict[str, Cell]:
    """What is known of a candidate's quality; nothing where no candidate was repeated."""
    quality = results.quality_objective()
    if not beliefs.estimates or quality is None:
        return {}
    one = beliefs.estimates.get(number)
    row: dict[str, Cell] = {f"{quality.name}_posterior": one.posterior if one else None} if posterior else {}
    return row | {
        f"{quality.name}_observed": one.mean if one else None,
        f"{quality.name}_observed_sd": one.spread if one else None,
        f"{quality.name}_observations": one.count if one else None,
        f"{quality.name}_posterior_sd": one.sd if one else None,
    }


def _fixed(one: ScoredTrial) -> dict[str, Cell]:
    trial, measured = one.trial, one.trial.measurements
    row: dict[str, Cell] = {
        "trial": trial.number,
        "status": trial.status.value,
        "digest": trial.digest,
        "origin": trial.origin,
        "failure": trial.failure.reason.value if trial.failure else None,
        "failure_text": trial.failure.text if trial.failure else None,
        "seconds": trial.seconds,
        "gpu_seconds": trial.gpu_seconds,
        "attempt": trial.attempt,
        "seed": trial.seed,
        "worker": trial.worker,
        "created_at": trial.created_at,
        "started_at": trial.started_at,
        "finished_at": trial.finished_at,
        "candidate": trial.candidate.model_dump_json(),
    }
    row["fidelity"] = measured.steps / measured.planned_steps if measured and measured.planned_steps else None
    for name in _TYPES:
        if name not in row and not name.endswith(_OF_PEAKS):
            row[name] = _finite(getattr(measured, name)) if measured else None
    row["calibrated_peak_bytes"] = measured.calibrated_peak_bytes if measured else None
    for phase in _PEAKS:
        peak = getattr(measured, f"{phase}_peak") if measured else None
        row[f"{phase}_peak_bytes"] = peak.live_bytes if peak else None
        row[f"{phase}_peak_source"] = peak.source.value if peak else None
    return {name: row[name] for name in _TYPES}


def _scores(one: ScoredTrial, metrics: Iterable[str]) -> dict[str, Cell]:
    quality = one.trial.measurements.quality if one.trial.measurements else {}
    splits = {"validation": quality, "test": one.trial.test_quality or {}}
    return {f"{split}_{metric}": _finite(found.get(metric)) for split, found in splits.items() for metric in metrics}


def _objectives(results: RunResults, one: ScoredTrial) -> dict[str, Cell]:
    values = one.values or (None,) * len(results.objectives)
    return {objective.name: value for objective, value in zip(results.objectives, values, strict=True)}


def _parameter_columns(names: Sequence[str], taken: set[str]) -> list[str]:
    """A parameter that is called like another column gets `parameter.` before its name."""
    return [f"parameter.{name}" if name in taken else name for name in names]


def _kind(values: Sequence[Cell]) -> str:
    found: set[type[Setting]] = {type(value) for value in values if value is not None}
    if found == {bool}:
        return "boolean"
    if found == {int}:
        return "Int64"
    return "float64" if found and found <= {int, float} else "string"


def _finite(value: Cell) -> Cell:
    """JSON and CSV have no NaN: what is not finite is missing."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
