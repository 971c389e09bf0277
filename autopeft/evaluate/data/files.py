"""Reading one file of rows: JSON lines, CSV, TSV or Parquet, by its suffix."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from autopeft.domain.errors import Problem
from autopeft.evaluate.data.mistakes import Mistakes
from autopeft.evaluate.data.table import Table

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")


def read_file(path: str, wanted: Collection[str], mistakes: Mistakes, key: str) -> Table | None:
    """Read the `wanted` columns of one file; None where it cannot be read, with the reasons in `mistakes`.

    `key` is the setting that named the file, for messages about a file that is not there.
    """
    file = Path(path).expanduser()
    if not file.exists():
        mistakes.add(Problem(path, "there is no such file", "", f"Check {key}; {_nearby(file)}"))
        return None
    if file.is_dir():
        mistakes.add(
            Problem(
                path,
                "is a folder, not a file",
                ", ".join(SUFFIXES),
                f"Name a file in {key}, or the folder in data.source.",
            )
        )
        return None
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        found = f"the suffix '{file.suffix}' is unknown" if file.suffix else "the file has no suffix"
        mistakes.add(Problem(path, found, ", ".join(SUFFIXES), "Rename or convert the file."))
        return None
    try:
        table = _parquet(path, file, wanted, mistakes) if suffix == ".parquet" else _text(path, file, wanted, mistakes)
    except OSError as error:
        mistakes.add(Problem(path, f"cannot be read: {error.strerror or error}", "", "Check the file's permissions."))
        return None
    if table is not None and table.rows == 0:
        mistakes.add(Problem(path, "the file holds no rows", "at least one row", f"Check {key}."))
        return None
    return table


def _nearby(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f"there is no folder '{folder}' either."
    names = sorted(one.name for one in folder.iterdir() if one.suffix.lower() in SUFFIXES)
    if not names:
        return f"'{folder.resolve()}' holds no data files."
    close = difflib.get_close_matches(file.name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{folder / close[0]}'?"
    return f"'{folder.resolve()}' holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}."


def _text(path: str, file: Path, wanted: Collection[str], mistakes: Mistakes) -> Table | None:
    raw = file.read_bytes()
    if not raw.strip():
        mistakes.add(Problem(path, "the file is empty", "at least one row", "Check that it was written completely."))
        return None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        step = f"Convert it, for example: iconv -f latin1 -t utf-8 {file.name}."
        mistakes.add(Problem(f"{path}:{line}", found, "UTF-8 text", step))
        return None
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _delimited(path, text, "," if suffix == ".csv" else "\t", wanted, mistakes)
    return _json_lines(path, text, wanted, mistakes)


def _json_lines(path: str, text: str, wanted: Collection[str], mistakes: Mistakes) -> Table | None:
    before = len(mistakes)
    rows: list[dict[str, object]] = []
    lines: list[int] = []
    # Only line feeds end a row: str.splitlines would also cut at separators that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            found = f"the line is not JSON: {error}"
            step = "Write one JSON object per line, without line breaks inside."
            mistakes.add_row(path, "not JSON", Problem(f"{path}:{number}", found, "one JSON object", step))
            if number == 1 and line.strip() in ("[", "{"):
                return None  # One value over many lines: every further line would only repeat the complaint.
            continue
        if not isinstance(value, dict):
            found = f"the line holds {_kind(value)}, not an object"
            allowed = 'one JSON object such as {"text": "…", "label": "…"}'
            problem = Problem(f"{path}:{number}", found, allowed, "Write one object per line.")
            mistakes.add_row(path, "not an object", problem)
            continue
        rows.append(value)
        lines.append(number)
    if len(mistakes) > before:
        return None
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names if name in wanted}
    return Table(path, names, columns, len(rows), tuple(lines))


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)


def _delimited(path: str, text: str, delimiter: str, wanted: Collection[str], mistakes: Mistakes) -> Table | None:
    records = _records(text, delimiter, csv.QUOTE_MINIMAL)
    if delimiter == "\t" and (records is None or any(len(row) != len(records[0][1]) for _, row in records)):
        # Many published TSV files do not quote at all and hold single quotation marks.
        records = _records(text, delimiter, csv.QUOTE_NONE)
    if records is None:
        step = "Quote fields that hold commas or line breaks, and double the quotation marks inside."
        mistakes.add(Problem(path, "its quotation marks are not balanced", "CSV with double quotes", step))
        return None
    names = tuple(name.strip() for name in records[0][1])
    twice = next((name for name in names if names.count(name) > 1 and name in wanted), None)
    if twice is not None:
        mistakes.add(Problem(f"{path}:1", f"two columns are called '{twice}'", "", "Rename one of them."))
        return None
    before = len(mistakes)
    for line, row in records[1:]:
        if len(row) != len(names):
            found = f"the row has {len(row)} fields, the header has {len(names)}"
            step = "Quote fields that hold the delimiter." if delimiter == "," else "Remove tabs inside fields."
            problem = Problem(f"{path}:{line}", found, f"{len(names)} fields", step)
            mistakes.add_row(path, "wrong number of fields", problem)
    if len(mistakes) > before:
        return None
    columns = {name: [row[i] for _, row in records[1:]] for i, name in enumerate(names) if name in wanted}
    return Table(path, names, columns, len(records) - 1, tuple(line for line, _ in records[1:]))


def _records(text: str, delimiter: str, quoting: Literal[0, 3]) -> Sequence[tuple[int, list[str]]] | None:
    """Line number and fields of every record that is not blank; None where the quoting is broken."""
    strict = quoting != csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=strict)
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    records, line = [], 1
    try:
        for row in reader:
            if row:
                records.append((line, row))
            line = reader.line_num + 1
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(limit)
    return records


def _parquet(path: str, file: Path, wanted: Collection[str], mistakes: Mistakes) -> Table | None:
    if file.stat().st_size == 0:
        mistakes.add(Problem(path, "the file is empty", "at least one row", "Check that it was written completely."))
        return None
    try:
        names = tuple(pq.read_schema(file).names)
        table = pq.read_table(file, columns=[name for name in names if name in wanted])
    except pa.ArrowException as error:
        found = f"it is not a readable Parquet file: {str(error).splitlines()[0]}"
        mistakes.add(Problem(path, found, "Parquet", "Write it again, or name a file with another suffix."))
        return None
    return Table(path, names, table.to_pydict(), table.num_rows)
