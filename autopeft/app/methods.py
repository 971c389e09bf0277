"""The table of PEFT methods: what each is, whether it fits a model, and what of peft is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.ports import MethodRules
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.inspection import inspect_model
from autopeft.evaluate.methods import METHODS, UNREGISTERED, UNREGISTERED_VARIANTS


@dataclass(frozen=True)
class Fit:
    """A method on one model, in all its layers and the modules that it usually takes."""

    fewest: int
    """Trainable parameters, the head excluded, at the first value of the ladder that fits."""
    most: int
    """At the last one."""
    values: tuple[Setting, ...]
    """The values of the ladder that fit."""
    reason: str
    """Why it does not fit; empty where it does."""

    @property
    def fits(self) -> bool:
        """Whether at least one value of the knob can be trained."""
        return not self.reason


@dataclass(frozen=True)
class MethodRow:
    """One method."""

    name: str
    title: str
    paper: str
    summary: str
    library: str
    knob: str | None
    ladder: tuple[Setting, ...]
    layers: bool
    """Whether it can be put into some layers only."""
    modules: bool
    """Whether it can be put into some modules only."""
    merges: bool
    quantised: bool
    tasks: tuple[TaskName, ...]
    alone: bool
    """Whether it must be the only insertion of a candidate."""
    fit: Fit | None
    """None where no model was named."""


@dataclass(frozen=True)
class LeftOut:
    """A type of peft, or a variant of one, that no method stands for."""

    name: str
    reason: str


@dataclass(frozen=True)
class MethodTable:
    """What `autopeft methods` shows."""

    rows: tuple[MethodRow, ...]
    left_out: tuple[LeftOut, ...]
    bound_to: str | None
    """The model, None where none was named."""

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        return asdict(self)


def method_table(task: TaskName | None = None, model: str | None = None) -> MethodTable:
    """Every method, or those of one task; with a model, what each would train of it.

    A model that is looked at for no task is a classifier of sequences.

    Raises:
        UserError: where the model cannot be had or cannot do the task.
    """
    layout = None
    if model is not None:
        asked = task or TaskName.SEQUENCE_CLASSIFICATION
        layout = inspect_model(SearchSpec.model_validate({"model": model}).model, asked)
    rows = tuple(_row(method, layout) for method in METHODS.values() if task is None or task in method.facts.tasks)
    reasons = {**dict(sorted(UNREGISTERED.items())), **dict(sorted(UNREGISTERED_VARIANTS.items()))}
    left_out = tuple(LeftOut(name, reason) for name, reason in reasons.items())
    return MethodTable(rows, left_out, model)


def _row(method: MethodRules, layout: ModelLayout | None) -> MethodRow:
    facts = method.facts
    return MethodRow(
        name=facts.name,
        title=facts.title,
        paper=facts.paper,
        summary=facts.summary,
        library=facts.library,
        knob=facts.knob,
        ladder=facts.ladder,
        layers=facts.takes_layers,
        modules=facts.takes_modules,
        merges=facts.merges,
        quantised=facts.quantised,
        tasks=tuple(task for task in TaskName if task in facts.tasks),
        alone=facts.alone,
        fit=None if layout is None else fit_of(method, layout),
    )


def fit_of(method: MethodRules, layout: ModelLayout) -> Fit:
    """What a method would train of a model in all its layers, over the ladder of its knob."""
    facts = method.facts
    steps: Sequence[dict[str, Setting]] = [{facts.knob: value} for value in facts.ladder] if facts.knob else [{}]
    counts: list[int] = []
    values: list[Setting] = []
    reasons: list[str] = []
    for step in steps:
        insertion = Insertion(
            method=facts.name,
            layers=tuple(range(len(layout.layers))),
            modules=method.default_modules(layout) if facts.takes_modules else (),
            settings={**facts.defaults, **step},
        )
        problems = method.problems(insertion, layout)
        if problems:
            reasons.append(problems[0].found)
            continue
        counts.append(method.trainable(insertion, layout))
        values += step.values()
    if not counts:
        return Fit(0, 0, (), reasons[0])
    return Fit(min(counts), max(counts), tuple(values), "")
