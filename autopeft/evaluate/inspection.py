"""Looking at model and data before a search: everything that is wrong, and what a space is bound to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.ports import MemoryForecast
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ModelSpec, SearchSpec
from autopeft.evaluate.base_model import BaseModel, build_from_config, build_on_meta
from autopeft.evaluate.data.load import DataSet, load_data
from autopeft.evaluate.devices import DeviceFacts, devices
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.forecast import forecast_of
from autopeft.evaluate.quantisation import check_quantised, quantised_layout
from autopeft.evaluate.source import weight_files
from autopeft.evaluate.tasks import make_task

__all__ = ["ANY_TASK", "ANY_TEXT", "DeviceFacts", "Inspection", "devices", "inspect_model", "inspect_run"]

ANY_TASK = TaskInfo(kind="classification", labels=("0", "1"), metric="accuracy", metrics=("accuracy",), rows={})
"""Stands for the task while the data cannot be read, so that the model's mistakes are found all the same."""

ANY_TEXT = TaskInfo(kind="causal-lm", metric="loss", metrics=("loss",), rows={})
"""The same for a language model."""


@dataclass(frozen=True)
class Inspection:
    """What a search needs to know of its model and its data."""

    layout: ModelLayout
    task: TaskInfo
    data_fingerprint: str
    model_fingerprint: str
    notices: tuple[str, ...]
    """What a person should know, one sentence each."""
    open_forecast: Callable[[str], MemoryForecast] | None = field(default=None, compare=False, repr=False)
    """Makes the forecast of the training memory on `cuda` or `cpu`, of the rows and the model that were looked at; to
    be called once, since it hands them over."""


def inspect_run(spec: SearchSpec) -> Inspection:
    """Check model and data and describe them; loads no weights.

    Raises:
        UserError: with the mistakes of both.
    """
    problems: list[Problem] = []
    data: DataSet | None = None
    try:
        data = load_data(spec.data, spec.seed)
    except UserError as error:
        problems += error.problems
    try:
        if spec.model.load_in is not None:
            check_quantised(spec.model, bool(devices().gpus) or spec.resources.ray_address is not None)
        base = build_on_meta(spec.model, data.task if data else ANY_TASK)
        layout = inspect_layout(base.model, base.new_parameters)
        if spec.model.load_in is not None:
            layout = quantised_layout(layout, base.model, spec.model.load_in)
        layout = layout.model_copy(update={"text_tokens": spec.data.max_tokens})
        task = make_task(spec, data, base, layout) if data else None
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    assert data is not None
    assert task is not None
    notices = [*data.notices, *task.notices()]
    if layout.max_positions is not None and layout.max_positions < spec.data.max_tokens:
        notices.append(
            f"The model takes {layout.max_positions} tokens at most, so texts are cut there "
            f"and not at {spec.data.max_tokens}."
        )
    new = [path for path in layout.head_paths if "." in path]
    if new:
        notices.append(f"The weight file lacks {', '.join(new)}; these are trained and saved with the head.")
    return Inspection(
        layout=layout,
        task=data.task,
        data_fingerprint=data.fingerprint,
        model_fingerprint=base.fingerprint,
        notices=tuple(notices),
        open_forecast=_handed_over(spec, data, base),
    )


def _handed_over(spec: SearchSpec, data: DataSet, base: BaseModel) -> Callable[[str], MemoryForecast]:
    """Rows and model for a forecast, which are let go of once it is made."""
    held = [(data, base)]

    def opened(target: str) -> MemoryForecast:
        rows, model = held.pop()
        return forecast_of(spec, rows, model, target)

    return opened


def inspect_model(spec: ModelSpec, task: TaskName = TaskName.SEQUENCE_CLASSIFICATION) -> ModelLayout:
    """The layout of a model alone, with a head for two classes or the language model's own; loads no weights.

    A local folder that holds a `config.json` and nothing else is enough.

    Raises:
        UserError: where there is no such model or it cannot do the task.
    """
    asked = ANY_TEXT if task is TaskName.CAUSAL_LM else ANY_TASK
    folder = Path(spec.source).expanduser()
    if (folder / "config.json").is_file() and not weight_files(folder):
        return inspect_layout(build_from_config(spec, asked))
    base = build_on_meta(spec, asked)
    return inspect_layout(base.model, base.new_parameters)
