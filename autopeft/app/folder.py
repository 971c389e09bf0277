"""The folder of one run: where each thing lies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.spec import SearchSpec
from autopeft.domain.start import Start

MIN_FREE_BYTES = 512 * 2**20
"""Below this a search does not start: adapters, the database and Ray's session files need room."""


OWN_STORE = "trials.db"
"""Says that the trial table is the SQLite file in the run's folder."""
_PROBE = ".write-probe"
_OWN = {"artefacts", "space.yaml", "space.partial", "spec.partial", "start.json", "store.txt", "trials.db", _PROBE}
"""What a run that was killed while it began may leave."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def space_file(self) -> Path:
        """The space as it was when the run began; a person's own file may change or go."""
        return self.path / "space.yaml"

    @property
    def start_file(self) -> Path:
        """What the run began with, settled: earlier runs may go on, and files of candidates may change or go."""
        return self.path / "start.json"

    @property
    def store_file(self) -> Path:
        """Names the database of the trial table, so that going on without it is refused."""
        return self.path / "store.txt"

    @property
    def sqlite_url(self) -> str:
        return f"sqlite:///{self.path / 'trials.db'}"

    @property
    def artefacts(self) -> Path:
        return self.path / "artefacts"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def front_csv(self) -> Path:
        return self.path / "front.csv"

    @property
    def trials_parquet(self) -> Path:
        return self.path / "trials.parquet"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.spec_file.is_file()

    def begin(self, spec: SearchSpec, space: Mapping[str, Any], store: str, start: Start | None = None) -> None:
        """Make the folder and save the spec, the space, the start and where the trial table is (without a password).

        Raises:
            UserError: where the folder cannot be written or belongs to something else.
        """
        if self.path.exists() and not self.exists and any(one.name not in _OWN for one in self.path.iterdir()):
            raise UserError(
                Problem("name", f"{self.path} exists and is not a run", "", "Choose another --name or --runs.")
            )
        check_writable(self.path)
        self.artefacts.mkdir(exist_ok=True)
        write_yaml(self.space_file, space)
        self.start_file.write_text((start or Start()).model_dump_json(), encoding="utf-8")
        self.store_file.write_text(store + "\n", encoding="utf-8")
        # Last, since a folder with a spec counts as a run. With its name, so that a renamed folder is noticed.
        self.save(spec.model_copy(update={"name": spec.run_name}))

    def save(self, spec: SearchSpec) -> None:
        """Write `spec.yaml`, whole or not at all."""
        write_yaml(self.spec_file, json.loads(spec.model_dump_json()))

    def load_start(self) -> Start:
        """What the run began with; nothing where it is older than that."""
        if not self.start_file.is_file():
            return Start()
        return Start.model_validate_json(self.start_file.read_text(encoding="utf-8"))

    def store(self) -> str:
        """The database that the run was begun with, as `begin` was told."""
        return self.store_file.read_text(encoding="utf-8").strip() if self.store_file.is_file() else OWN_STORE

    def load_spec(self) -> SearchSpec:
        """The spec that the run was begun with."""
        return SearchSpec.model_validate(yaml.safe_load(self.spec_file.read_text(encoding="utf-8")))


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a YAML file, whole or not at all."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_writable(path: Path) -> None:
    """Make `path` and see that a file can be written in it and that the disk has room.

    Raises:
        UserError: naming the folder and what to do.
    """
    probe = path / _PROBE
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            Problem(
                "runs", f"the folder {path} cannot be written ({error.strerror})", "", "Choose another with --runs DIR."
            )
        ) from error
    free = shutil.disk_usage(path).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            Problem(
                "runs",
                f"the disk of {path} is nearly full: {free / 2**20:.0f} MiB free",
                f"at least {MIN_FREE_BYTES / 2**20:.0f} MiB",
                "Free some space or choose another disk with --runs DIR.",
            )
        )


def run_folders(runs: Path) -> list[RunFolder]:
    """Every run below `runs`, by name."""
    if not runs.is_dir():
        return []
    return [folder for path in sorted(runs.iterdir()) if (folder := RunFolder(path)).exists]


def find_run(runs: Path, name: str) -> RunFolder:
    """The folder of the run `name` below `runs`.

    Raises:
        UserError: where there is none.
    """
    folder = RunFolder(runs / name)
    if "/" in name or "\\" in name or name.startswith(".") or not folder.exists:
        names = [one.name for one in run_folders(runs)]
        if not names:
            raise UserError(Problem("NAME", f"there are no runs in {runs}", "", "Begin one: autopeft search"))
        raise UserError(unknown("NAME", name, names, f"Runs are looked for in {runs}; see `autopeft list`."))
    begun_as = folder.load_spec().run_name
    if begun_as != name:
        raise UserError(
            Problem("NAME", f"the folder {folder.path} holds the run '{begun_as}'", "", "Give it its old name back.")
        )
    return folder
