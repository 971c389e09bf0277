"""Where tables come from: named files, a folder, a folder saved by `datasets`, the hub, or the standard library."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopeft.domain.errors import Problem
from autopeft.domain.spec import DEFAULT_DATA, DataSpec
from autopeft.evaluate.data import python_docs
from autopeft.evaluate.data.columns import wanted
from autopeft.evaluate.data.files import SUFFIXES, read_file
from autopeft.evaluate.data.mistakes import Mistakes
from autopeft.evaluate.data.table import Table

ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test",),
}
"""Names of splits and of the files in a folder, best first."""
HUB_TIMEOUT_S = 5.0
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_tables(spec: DataSpec, mistakes: Mistakes, notices: list[str]) -> dict[str, Table | None]:
    """One table per split of the spec; None, with the reason in `mistakes`, where it cannot be read."""
    if spec.source is None:
        named = {"train": spec.train, "validation": spec.validation, "test": spec.test}
        return {
            split: read_file(path, wanted(spec), mistakes, f"data.{split}")
            for split, path in named.items()
            if path is not None
        }
    if spec.source == DEFAULT_DATA:
        return _chosen(spec, python_docs.tables(), mistakes)
    folder = Path(spec.source).expanduser()
    if folder.is_file():
        step = "Name files in data.train and data.validation."
        mistakes.add(Problem("data.source", f"'{spec.source}' is a file", "a folder or a hub name", step))
        return {}
    if not folder.is_dir():
        return _from_hub(spec, mistakes)
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _saved(spec, folder, mistakes)
    return _files(spec, folder, mistakes)


def _files(spec: DataSpec, folder: Path, mistakes: Mistakes) -> dict[str, Table | None]:
    """The splits of a folder that holds one file per split."""
    files = sorted(one for one in folder.iterdir() if one.is_file() and one.suffix.lower() in SUFFIXES)
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(file.stem, []).append(file)
        by_name.setdefault(file.name, []).append(file)
    chosen = _choose(spec, [*by_name], mistakes, shown=[file.name for file in files])
    tables: dict[str, Table | None] = {}
    for split, name in chosen.items():
        if len(by_name[name]) > 1:
            found = f"{' and '.join(file.name for file in by_name[name])} could both be the {split} split"
            mistakes.add(Problem(str(spec.source), found, "one file per split", f"Name one in data.{split}."))
        else:
            path = str(Path(str(spec.source)) / by_name[name][0].name)
            tables[split] = read_file(path, wanted(spec), mistakes, f"data.{split}")
    return tables


def _saved(spec: DataSpec, folder: Path, mistakes: Mistakes) -> dict[str, Table | None]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # the loader raises whatever pyarrow or json raise on a broken folder
        found = f"the folder cannot be read by `datasets`: {_first_line(error)}"
        mistakes.add(Problem(str(spec.source), found, "a folder written by save_to_disk", "Save it again."))
        return {}
    if not isinstance(loaded, Mapping):
        found = "the folder holds one data set without splits"
        step = "Save a DatasetDict, for example dataset.train_test_split(0.1)."
        mistakes.add(Problem(str(spec.source), found, "a DatasetDict with train and validation", step))
        return {}
    return _chosen(spec, _as_tables(spec, loaded), mistakes)


def _from_hub(spec: DataSpec, mistakes: Mistakes) -> dict[str, Table | None]:
    source = str(spec.source)
    if not _HUB_NAME.fullmatch(source) or source.startswith("."):
        step = f"Check the path; the embedded set is called {DEFAULT_DATA}."
        mistakes.add(Problem("data.source", f"there is no folder '{source}'", "a folder or a hub name", step))
        return {}
    import datasets

    reachable = _hub_answers(source)
    try:
        with _quiet_hub(offline=not reachable):
            loaded = datasets.load_dataset(source, spec.subset)
    except Exception as error:  # the loader raises many kinds: network, missing, gated, ambiguous, broken
        if reachable:
            found, step = _first_line(error), "Check data.source and data.subset on the hub."
        else:
            found = "there is no such folder, the hub cannot be reached, and its cache does not hold the data set"
            step = f"Download the files and name them in data.train and data.validation, or use {DEFAULT_DATA}."
        mistakes.add(Problem("data.source", f"'{source}' cannot be loaded: {found}", "", step))
        return {}
    return _chosen(spec, _as_tables(spec, loaded), mistakes)


def _hub_answers(source: str) -> bool:
    """Whether the hub says anything about this name; `datasets` alone would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # its client's

    try:
        HfApi().dataset_info(source, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError as error:
        return error.response.status_code < 500  # what is broken on the way there does not speak for the hub
    except (HTTPError, OSError):  # the client's errors, and offline mode, which is a ConnectionError
        return False
    return True


@contextmanager
def _quiet_hub(offline: bool) -> Iterator[None]:
    """Loads without progress bars, and, where `offline`, from the cache alone and at once."""
    import datasets
    import huggingface_hub

    bars = datasets.is_progress_bar_enabled()
    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    datasets.disable_progress_bars()
    if offline:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
        if bars:
            datasets.enable_progress_bars()


def _as_tables(spec: DataSpec, loaded: Mapping[str, Any]) -> dict[str, Table]:
    """Tables of a `DatasetDict`, with the names behind integer labels."""
    tables = {}
    for name, split in loaded.items():
        names = tuple(split.column_names)
        columns = {column: split[column][:] for column in names if column in wanted(spec)}
        classes = {
            column: tuple(split.features[column].names)
            for column in columns
            if type(split.features[column]).__name__ == "ClassLabel"
        }
        tables[str(name)] = Table(f"{spec.source}[{name}]", names, columns, len(split), class_names=classes)
    return tables


def _chosen(spec: DataSpec, tables: Mapping[str, Table], mistakes: Mistakes) -> dict[str, Table | None]:
    chosen: dict[str, Table | None] = {}
    for split, name in _choose(spec, tables, mistakes, shown=tables).items():
        table = tables[name]
        if table.rows == 0:
            mistakes.add(Problem(table.name, "the split holds no rows", "at least one row", f"Check data.{split}."))
        chosen[split] = table if table.rows else None
    return chosen


def _choose(spec: DataSpec, names: Collection[str], mistakes: Mistakes, shown: Collection[str]) -> dict[str, str]:
    """Which of `names` is each split; those that are asked for or needed and not there are mistakes."""
    chosen: dict[str, str] = {}
    listed = ", ".join(shown) or "(none)"
    for split, aliases in ALIASES.items():
        asked = getattr(spec, split)
        if asked is not None and asked not in names:
            close = difflib.get_close_matches(asked, list(names), n=1, cutoff=0.6)
            step = f"Did you mean '{close[0]}'?" if close else f"Leave data.{split} out, or name one of these."
            mistakes.add(Problem(f"data.{split}", f"{spec.source} has no split '{asked}'", listed, step))
            continue
        found = asked or next((alias for alias in aliases if alias in names), None)
        if found is not None:
            chosen[split] = found
        elif split != "test":
            step = f"Name the split in data.{split}, or give files in data.train and data.validation."
            if split == "validation" and shown:
                step = "Cut a part off the training split, or name another split in data.validation."
            mistakes.add(Problem(str(spec.source), f"there is no {split} split", listed, step))
    return chosen


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
