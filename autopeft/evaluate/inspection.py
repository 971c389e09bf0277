"""Looking at model and data before a search: everything that is wrong, and what a space is bound to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ModelSpec, SearchSpec
from autopeft.evaluate.base_model import build_from_config, build_on_meta
from autopeft.evaluate.data.load import DataSet, load_data
from autopeft.evaluate.devices import DeviceFacts, devices
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.quantisation import check_quantised, quantised_layout
from autopeft.evaluate.source import weight_files
from autopeft.evaluate.tasks import make_task

__all__ = ["DeviceFacts", "Inspection", "devices", "inspect_model", "inspect_run"]

_ANY_TASK = TaskInfo(kind="classification", labels=("0", "1"), metric="accuracy", metrics=("accuracy",), rows={})
"""Stands for the task while the data cannot be read, so that the model's mistakes are found all the same."""

_ANY_TEXT = TaskInfo(kind="causal-lm", metric="loss", metrics=("loss",), rows={})
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
        base = build_on_meta(spec.model, data.task if data else _ANY_TASK)
        layout = inspect_layout(base.model, base.new_parameters)
        if spec.model.load_in is not None:
            layout = quantised_layout(layout, base.model, spec.model.load_in)
        layout = layout.model_copy(update={"text_tokens": spec.data.max_tokens})
        of_rows = make_task(spec, data, base, layout).notices() if data else []
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    assert data is not None
    notices = [*data.notices, *of_rows]
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
    )


def inspect_model(spec: ModelSpec, task: TaskName = TaskName.SEQUENCE_CLASSIFICATION) -> ModelLayout:
    """The layout of a model alone, with a head for two classes or the language model's own; loads no weights.

    A local folder that holds a `config.json` and nothing else is enough.

    Raises:
        UserError: where there is no such model or it cannot do the task.
    """
    asked = _ANY_TEXT if task is TaskName.CAUSAL_LM else _ANY_TASK
    folder = Path(spec.source).expanduser()
    if (folder / "config.json").is_file() and not weight_files(folder):
        return inspect_layout(build_from_config(spec, asked))
    base = build_on_meta(spec, asked)
    return inspect_layout(base.model, base.new_parameters)
