"""Between rows and the domain's models.

JSON has no NaN and no infinity, and a diverged trial has both. They are written as `{"$float": "NaN"}`, so that the
text stays JSON that every other reader takes, and come back as the float they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic import BaseModel

from autopeft.domain.candidate import Candidate
from autopeft.domain.measurements import Measurements
from autopeft.domain.trial import Failure, Trial, TrialStatus

_TAG = "$float"
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_Model = TypeVar("_Model", bound=BaseModel)


def to_text(value: Any) -> str:
    """JSON text, ASCII only, of a model or of plain JSON values; takes NaN and infinities."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    try:
        return json.dumps(plain, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_tagged(plain), separators=(",", ":"), allow_nan=False)


def from_text(text: str) -> Any:
    """The plain values that `to_text` wrote."""
    return json.loads(text, object_hook=_untagged) if _TAG in text else json.loads(text)


def model_from(model: type[_Model], text: str) -> _Model:
    """The model that `to_text` wrote."""
    if _TAG in text:
        return model.model_validate(from_text(text))
    # Several times as fast; a table has ten thousand of these.
    return model.model_validate_json(text)


def trial_from(row: Mapping[str, Any]) -> Trial:
    """The trial of one row of the trial table."""
    return Trial(
        number=row["number"],
        candidate=model_from(Candidate, row["candidate"]),
        parameters=from_text(row["parameters"]),
        seed=row["seed"],
        status=TrialStatus(row["status"]),
        attempt=row["attempt"],
        driver_deaths=row["driver_deaths"],
        measurements=None if row["measurements"] is None else model_from(Measurements, row["measurements"]),
        failure=None if row["failure"] is None else model_from(Failure, row["failure"]),
        test_quality=None if row["test_quality"] is None else from_text(row["test_quality"]),
        sampler_state=from_text(row["sampler_state"]),
        worker=row["worker"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        seconds=row["seconds"],
        gpu_seconds=row["gpu_seconds"],
    )


def first(result: sa.CursorResult[Any]) -> Trial | None:
    """The trial that a statement returned, None where it met no row."""
    row = result.mappings().first()
    return None if row is None else trial_from(dict(row))


def _tagged(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: _tagged(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(one) for one in value]
    return value


def _untagged(found: dict[str, Any]) -> Any:
    name = found.get(_TAG)
    return _NAMES[name] if len(found) == 1 and isinstance(name, str) and name in _NAMES else found
