"""Tables of recorded trainings as Parquet files: a row per configuration, seed and rung."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.recording import FORMAT, RecordedRung, RecordedTable, RecordedTraining, RecordingFacts

_FACTS = b"autopeft"
"""Key of the file's metadata that holds the facts as JSON."""
_OF_TRAINING = tuple(
    name
    for name in RecordedTraining.model_fields
    if name not in ("rungs", "parameters", "candidate", "wall_s", "cpu_s")
)
_OF_RUNG = ("step", "train_loss", "train_s", "evaluate_s", "wall_s", "cpu_s")
_INTEGERS = {
    name
    for name in (*_OF_TRAINING, "step")
    if name.endswith(("_bytes", "_parameters", "_steps", "_tokens")) or name in ("config", "seed", "step")
}
_TEXTS = {"status", "reason"}


def write_table(path: Path, table: RecordedTable) -> None:
    """Write it in place of what is there, at once.

    A rung that a training did not reach is a row without a quality.
    """
    rows = [
        _row(training, rung, table.facts)
        for trainings in table.trainings.values()
        for training in trainings
        for rung in range(len(table.facts.rungs))
    ]
    metrics = sorted({metric for row in rows for metric in row if metric.startswith("quality.")})
    columns = {name: [row.get(name) for row in rows] for name in _schema(metrics).names}
    found = pa.table(columns, schema=_schema(metrics)).replace_schema_metadata(
        {_FACTS: table.facts.model_dump_json().encode()}
    )
    partial = path.with_suffix(".partial")
    pq.write_table(found, partial, compression="zstd")
    partial.replace(path)


def read_table(path: Path) -> RecordedTable:
    """A table that `write_table` wrote.

    Raises:
        UserError: where there is none, or it is of a later version.
    """
    try:
        found = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = getattr(error, "strerror", None) or "it is no Parquet file"
        raise UserError(Problem(str(path), f"the table cannot be read ({reason})", "", "Check the path.")) from error
    said = (found.schema.metadata or {}).get(_FACTS)
    if said is None:
        step = "Record one with `autopeft bench record`."
        raise UserError(Problem(str(path), "the file holds no recorded trainings", "", step))
    version = json.loads(said).get("format")
    if version != FORMAT:
        raise UserError(Problem(str(path), f"the table has the format {version}", str(FORMAT), "Update AutoPEFT."))
    facts = RecordingFacts.model_validate_json(said)
    by_training: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in found.to_pylist():
        by_training.setdefault((row["config"], row["seed"]), []).append(row)
    return RecordedTable.of(facts, [_training(rows) for rows in by_training.values()])


def _schema(metrics: list[str]) -> Any:
    def kind(name: str) -> Any:
        return pa.string() if name in _TEXTS else pa.int64() if name in _INTEGERS else pa.float64()

    of_training = [(name, kind(name)) for name in _OF_TRAINING]
    of_rung = [(name, kind(name)) for name in (*_OF_RUNG, *metrics)]
    texts = [("parameters", pa.string()), ("candidate", pa.string())]
    ends = [("end_wall_s", pa.float64()), ("end_cpu_s", pa.float64())]
    return pa.schema([*of_training, *texts, *ends, ("rung", pa.int64()), *of_rung])


def _row(training: RecordedTraining, rung: int, facts: RecordingFacts) -> dict[str, Any]:
    said = training.model_dump(mode="json", exclude={"rungs", "wall_s", "cpu_s"})
    row = {
        **said,
        "parameters": json.dumps(said["parameters"], sort_keys=True),
        "candidate": training.candidate.model_dump_json(exclude_none=True),
        "end_wall_s": training.wall_s,
        "end_cpu_s": training.cpu_s,
        "rung": rung,
    }
    if rung < len(training.rungs):
        reached = training.rungs[rung]
        row |= reached.model_dump(exclude={"quality"})
        row |= {f"quality.{name}": value for name, value in reached.quality.items()}
    return row


def _training(rows: Sequence[Mapping[str, Any]]) -> RecordedTraining:
    rows = sorted(rows, key=lambda row: row["rung"])
    first = rows[0]
    metrics = [name for name in first if name.startswith("quality.")]
    rungs = tuple(
        RecordedRung(
            **{name: row[name] for name in _OF_RUNG},
            quality={name.removeprefix("quality."): row[name] for name in metrics if row[name] is not None},
        )
        for row in rows
        if row["step"] is not None
    )
    return RecordedTraining(
        **{name: first[name] for name in _OF_TRAINING},
        parameters=json.loads(first["parameters"]),
        candidate=Candidate.model_validate_json(first["candidate"]),
        wall_s=first["end_wall_s"],
        cpu_s=first["end_cpu_s"],
        rungs=rungs,
    )
