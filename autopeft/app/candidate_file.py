"""One candidate in a YAML file: as a search exported it, or as a person writes it down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import TreatmentRules
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA

_RATE = 1e-4
"""Stands for a learning rate that is left out: memory does not depend on it."""


def read_candidate(path: Path, layout: ModelLayout) -> Candidate:
    """A `candidate.yaml`, or the candidate in a `recipe.yaml`, fitted to the model.

    What is left out is filled in: all layers, the modules that the method usually takes, its default settings.

    Raises:
        UserError: where it cannot be read, with every name that is unknown, and where it does not fit the model.
    """
    found = _read(path)
    found = found.get("candidate", found)
    if not isinstance(found, dict) or not isinstance(found.get("insertions", []), list):
        raise UserError(_problem(path, "it is no candidate", "Give a mapping with a list `insertions`."))
    problems = []
    insertions = []
    for index, one in enumerate(found.get("insertions", [])):
        name = one.get("method") if isinstance(one, dict) else None
        if name not in METHODS:
            where = f"{path}: insertions.{index}.method"
            problems.append(unknown(where, str(name), METHODS, "See `autopeft methods`."))
        elif wrong := _no_lists(f"{path}: insertions.{index}", one, layout):
            problems += wrong
        else:
            insertions.append(_filled(one, layout))
    treatments: tuple[tuple[str, str, Mapping[str, TreatmentRules]], ...] = (
        ("pruning", "criterion", CRITERIA),
        ("policy", "name", POLICIES),
    )
    for key, names, known in treatments:
        said = found.get(key)
        chosen = str(said.get(names)) if isinstance(said, dict) else "nothing"
        if said is not None and chosen not in known:
            problems.append(unknown(f"{path}: {key}.{names}", chosen, known))
        elif said is not None:
            settings = {**known[chosen].facts.defaults, **(said.get("settings") or {})}
            found = {**found, key: {**said, "settings": settings}}
    if problems:
        raise UserError(*problems)
    try:
        candidate = Candidate.model_validate({"learning_rate": _RATE, **found, "insertions": insertions})
    except ValidationError as error:
        places = [(".".join(str(step) for step in one["loc"]), one["msg"]) for one in error.errors()]
        raise UserError(*(Problem(f"{path}: {place}", text) for place, text in places)) from None
    check_fit(candidate, layout)
    return candidate


def check_fit(candidate: Candidate, layout: ModelLayout) -> None:
    """Raises UserError with all that keeps a candidate from being put into a model."""
    problems = [problem for one in candidate.insertions for problem in METHODS[one.method].problems(one, layout)]
    if not problems and candidate.policy is not None:
        problems += POLICIES[candidate.policy.name].problems(candidate, layout)
    if not problems and candidate.pruning is not None:
        problems += CRITERIA[candidate.pruning.criterion].problems(candidate, layout)
    if problems:
        raise UserError(*problems)


def _no_lists(where: str, one: dict[str, Any], layout: ModelLayout) -> list[Problem]:
    """Layers and modules that are said otherwise than as lists: a text would be taken for its letters."""
    allowed = {"layers": f"a list of numbers from 0 to {len(layout.layers) - 1}", "modules": "a list of roles"}
    return [
        Problem(f"{where}.{key}", f"'{one[key]}' is no list", meaning, "Leave it out for what is usual.")
        for key, meaning in allowed.items()
        if one.get(key) is not None and not isinstance(one[key], list)
    ]


def _filled(one: dict[str, Any], layout: ModelLayout) -> dict[str, Any]:
    method = METHODS[one["method"]]
    settings = {**method.facts.defaults, **(one.get("settings") or {})}
    modules = one.get("modules") or (method.default_modules(layout) if method.facts.takes_modules else ())
    layers = one.get("layers")
    return {
        **one,
        "layers": range(len(layout.layers)) if layers is None else layers,
        "modules": sorted(modules),
        "settings": settings,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(_problem(path, f"the candidate cannot be read ({error.strerror})", "Check the path.")) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise UserError(Problem(at, "it is not YAML", "", "Correct it.")) from None
    if not isinstance(found, dict):
        raise UserError(_problem(path, "it holds no keys", "Give a candidate.yaml that `autopeft export` wrote."))
    return found


def _problem(path: Path, found: str, next_step: str) -> Problem:
    return Problem(str(path), found, "a candidate.yaml or recipe.yaml", next_step)
