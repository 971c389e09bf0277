"""Base models without weights, as trials have them: frozen, a new head in float32, in few bits where asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import DEFAULT_MODEL, ModelSpec
from autopeft.evaluate.base_model import BaseModel, build_from_config, build_on_meta
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.quantised import hold_in_few_bits
from autopeft.evaluate.quantisation import kept_whole, norms_in_float32
from autopeft.evaluate.source import config_of, read_config, weight_files

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Fields without which transformers would put in the sizes of a model that nobody asked about; it saves them always."""


def check_sizes(spec: ModelSpec) -> None:
    """Raises UserError where the model's config leaves out its type or one of its sizes."""
    source = config_of(spec)
    said = read_config(source.folder)
    kind = said.get("model_type")
    if kind is None:
        found = f"{source.folder / 'config.json'} has no model_type"
        raise UserError(Problem("model", found, "a type of transformers, for example llama", "Add it."))
    if kind not in CONFIG_MAPPING:
        return  # code of its own, or refused elsewhere
    usual = CONFIG_MAPPING[kind]().get_text_config()
    nested = said.get("text_config")
    here = nested if isinstance(nested, dict) else said
    names = [usual.attribute_map.get(name, name) for name in _SIZES if hasattr(usual, name)]
    missing = [name for name in names if name not in here]
    wrong = [name for name in names if name in here and not _whole(here[name])]
    problems = []
    if missing:
        found = f"{source.folder / 'config.json'} leaves out {', '.join(missing)}"
        problems.append(
            Problem("model", found, "", f"Add what the model has: a {kind} config needs {', '.join(names)}.")
        )
    problems += [
        Problem("model", f"{name} is {here[name]!r}", "a whole number above 0", "Correct it.") for name in wrong
    ]
    if problems:
        raise UserError(*problems)


def _whole(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def bare_model(spec: ModelSpec, task: TaskInfo) -> tuple[Any, ModelLayout]:
    """The model on `meta` and its layout; nothing but a config is needed, and nothing else is downloaded.

    Where a folder holds the weights too, their names tell which part of the head is new.

    Raises:
        UserError: where there is no such model or it cannot do the task.
    """
    folder = Path(spec.source).expanduser()
    if spec.source == DEFAULT_MODEL or ((folder / "config.json").is_file() and weight_files(folder)):
        return in_few_bits(build_on_meta(spec, task), spec)
    model = build_from_config(spec, task)
    for path in inspect_layout(model).head_paths:
        model.get_submodule(path).float()
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = 0  # heads of decoders look for it, whichever it is
    model.eval()
    model.requires_grad_(False)
    return in_few_bits(BaseModel(model, None, 0, spec.source, "", ()), spec)


def in_few_bits(base: BaseModel, spec: ModelSpec) -> tuple[Any, ModelLayout]:
    """The model, its frozen weights held as the spec says, and its layout."""
    if spec.load_in is not None:
        hold_in_few_bits(base.model, spec.load_in, kept_whole(base.model, base.new_parameters))
        norms_in_float32(base.model)
    layout = inspect_layout(base.model, base.new_parameters)
    return base.model, layout.model_copy(update={"quantised": spec.load_in is not None})
