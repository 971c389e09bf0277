"""A complete training recipe: what `autopeft train` needs to make one point again from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.results import RunRecord
from autopeft.domain.spec import DataSpec, ModelSpec, SearchSpec, TrainingSpec
from autopeft.domain.trial import Trial
from autopeft.export.files import write_whole

_HEAD = "# A training recipe. Make this point again from scratch:  autopeft train recipe.yaml --out DIR\n"


class Expected(BaseModel):
    """What the trial measured: a repetition on the same data and model comes near, on the same machine equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation: dict[str, float] = {}
    """Validation metrics as fractions."""
    test: dict[str, float] | None = None
    """Test metrics, where the point was scored on a test split."""
    trainable_parameters: int | None = None
    adapter_bytes: int | None = None
    train_peak_bytes: int | None = None
    train_peak_source: str | None = None
    train_s: float | None = None
    steps: int = 0
    first_losses: tuple[float, ...] = ()
    """Training loss of the first steps."""
    data_fingerprint: str = ""
    model_fingerprint: str = ""
    versions: dict[str, str] = {}


class Recipe(BaseModel):
    """Everything that one training run needs: the shared parts of a spec, one candidate, and seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    autopeft_recipe: Literal[1] = 1
    """Version of this format."""
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    candidate: Candidate
    seed: int
    """Of the training run: initial weights, order of rows, dropout."""
    search_seed: int = 0
    """Seed of the search's spec, which draws the sample of `data.max_train_rows`."""
    expected: Expected = Expected()

    @classmethod
    def of(cls, record: RunRecord, trial: Trial) -> Recipe:
        """The recipe of one trial of a run."""
        measured = trial.measurements
        peak = measured.train_peak if measured else None
        expected = Expected(
            validation=measured.quality if measured else {},
            test=trial.test_quality,
            trainable_parameters=measured.trainable_parameters if measured else None,
            adapter_bytes=measured.adapter_bytes if measured else None,
            train_peak_bytes=peak.live_bytes if peak else None,
            train_peak_source=peak.source.value if peak else None,
            train_s=measured.train_s if measured else None,
            steps=measured.steps if measured else 0,
            first_losses=measured.first_losses if measured else (),
            data_fingerprint=record.provenance.data_fingerprint,
            model_fingerprint=record.provenance.model_fingerprint,
            versions=record.provenance.versions,
        )
        return cls(
            model=record.spec.model,
            data=record.spec.data,
            training=record.spec.training,
            candidate=trial.candidate,
            seed=trial.seed,
            search_seed=record.spec.seed,
            expected=expected,
        )

    def spec(self) -> SearchSpec:
        """The spec that an evaluator for this recipe is built from."""
        return SearchSpec(model=self.model, data=self.data, training=self.training, seed=self.search_seed)

    def save(self, path: Path) -> Path:
        """Write it as YAML."""
        text = _HEAD + to_yaml(self.model_dump(mode="json"))
        return write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a YAML file.

        Raises:
            UserError: where the file cannot be read, or with every key that is wrong.
        """
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise _unreadable(str(path), f"the recipe cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise _unreadable(str(path), "it is not text") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
            raise _unreadable(where, f"it is not YAML ({getattr(error, 'problem', None) or error})") from None
        if not isinstance(found, dict):
            raise _unreadable(str(path), "it holds no keys")
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise UserError(*(_problem(path, one["loc"], one["msg"], one["type"]) for one in error.errors())) from None


def to_yaml(value: object) -> str:
    """Block YAML with keys in the order given; floats come back as the same floats."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Safe YAML for a person to read."""

    def ignore_aliases(self, data: object) -> bool:
        """Write a value that comes twice twice, not as `*id001`."""
        return True


def _unreadable(where: str, found: str) -> UserError:
    return UserError(
        Problem(where, found, "a recipe.yaml that `autopeft export` wrote", "See `autopeft export --help`.")
    )


def _problem(path: Path, location: tuple[int | str, ...], message: str, kind: str) -> Problem:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return Problem(f"{path}: {key}", "there is no such key", "", "Correct its spelling or remove it.")
    if kind == "missing":
        return Problem(f"{path}: {key}", "this key is missing", "", "Export the point again, or add the key.")
    return Problem(f"{path}: {key}", message.removeprefix("Value error, "))
