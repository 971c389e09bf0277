"""Loading the base model with its task head, and its tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import TaskName
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ModelSpec
from autopeft.evaluate.layout import head_paths
from autopeft.evaluate.quantisation import check_quantised, kept_whole, norms_in_float32, quantisation
from autopeft.evaluate.source import ModelSource, config_of, fingerprint, hub_reachable, read_config, source_of

__all__ = ["BaseModel", "build_from_config", "build_on_meta", "hub_reachable", "load_base_model", "source_of"]

_DECODERS = "gpt2, opt, llama, mistral, qwen2, gemma"


@dataclass
class BaseModel:
    """A model that `AutoModelForSequenceClassification` or `AutoModelForCausalLM` returned, with what belongs to it.

    A new head is float32, whatever the rest is in; half-precision weights run under autocast, where the two meet. A
    language model's head is its own: it stays frozen and in the dtype that it has.
    """

    model: Any
    tokenizer: Any
    pad_id: int
    """The token that the model takes for padding, and so the one to pad with; the tokenizer's may be another."""
    name: str
    """What an exported adapter calls it: a hub id, or the path as given."""
    fingerprint: str
    new_parameters: tuple[str, ...]
    """Names of the parameters that the checkpoint lacks, so that they were initialised from the seed."""


def load_base_model(spec: ModelSpec, task: TaskInfo, seed: int, device: str | torch.device = "cpu") -> BaseModel:
    """Load weights, head and tokenizer onto `device`; new parameters are a function of `seed`.

    Raises:
        UserError: as `source_of` does, and where the model cannot do the task or cannot be loaded in so few bits.
    """
    if spec.load_in is not None:
        check_quantised(spec, torch.device(device).type == "cuda")
    return _load(spec, task, seed, device)


def build_on_meta(spec: ModelSpec, task: TaskInfo) -> BaseModel:
    """The same model without weights, on the `meta` device: shapes, names and dtypes only, of the weights unquantised.

    Raises:
        UserError: as `load_base_model`.
    """
    return _load(spec, task, 0, "meta")


def build_from_config(spec: ModelSpec, task: TaskInfo, attention: str | None = None) -> Any:
    """The model that a `config.json` describes, on the `meta` device; needs no weights, no tokenizer.

    `attention` is the attention's implementation by transformers' name; its own choice by default.

    Raises:
        UserError: where the config is no model's, or the model cannot do the task.
    """
    config = _config(spec, task, config_of(spec))
    said: dict[str, Any] = {} if spec.dtype == "auto" else {"dtype": getattr(torch, spec.dtype)}
    if attention is not None:
        said["attn_implementation"] = attention
    try:
        with _quiet(), torch.device("meta"):
            return _auto(task).from_config(config, trust_remote_code=spec.trust_remote_code, **said)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise UserError(
            Problem("model", f"'{spec.source}' cannot be built: {_first_line(error)}", "", "Check its config.json.")
        ) from error


def _auto(task: TaskInfo) -> Any:
    """The class of transformers that builds models with the task's head."""
    return AutoModelForCausalLM if task.name is TaskName.CAUSAL_LM else AutoModelForSequenceClassification


def _load(spec: ModelSpec, task: TaskInfo, seed: int, device: str | torch.device) -> BaseModel:
    source = source_of(spec)
    config = _config(spec, task, source)
    on_meta = str(device) == "meta"
    placed: dict[str, Any] = {"device_map": "meta"} if on_meta else {}
    if spec.load_in is not None and not on_meta:
        plain = _load(spec, task, seed, "meta")
        placed = {
            "device_map": {"": device},
            "quantization_config": quantisation(spec.load_in, kept_whole(plain.model, plain.new_parameters)),
        }
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            tokenizer = AutoTokenizer.from_pretrained(
                source.folder, trust_remote_code=spec.trust_remote_code, local_files_only=True
            )
            torch.manual_seed(seed)
            model, report = _auto(task).from_pretrained(
                source.folder,
                config=config,
                dtype=spec.dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=spec.trust_remote_code,
                **placed,
            )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(
            Problem("model", f"'{spec.source}' cannot be loaded: {_first_line(error)}", "", "Check its files.")
        ) from error
    pad_id = _set_padding(model, tokenizer, spec)
    # The adapter's config copies this name; a folder of this machine would mean nothing elsewhere.
    model.name_or_path = model.config._name_or_path = source.name
    new = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    if task.name is TaskName.CAUSAL_LM and new:
        raise UserError(_incomplete(spec, sorted(new)))
    if spec.load_in is not None and not on_meta:
        norms_in_float32(model)
    elif not on_meta:
        model.to(device)
    for path in head_paths(model, sorted(new)):
        # In half precision AdamW's epsilon or the rounding of small steps would spoil its training.
        model.get_submodule(path).float()
    model.eval()
    model.requires_grad_(False)
    return BaseModel(model, tokenizer, pad_id, source.name, fingerprint(source), tuple(sorted(new)))


def _config(spec: ModelSpec, task: TaskInfo, source: ModelSource) -> Any:
    raw = read_config(source.folder)
    _check_type(spec, task.name, raw)
    if task.name is TaskName.CAUSAL_LM:
        return _read(spec, source)
    labels = task.labels or ("value",)
    return _read(
        spec,
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="regression" if task.kind == "regression" else "single_label_classification",
    )


def _read(spec: ModelSpec, source: ModelSource, **changes: Any) -> Any:
    try:
        with _quiet():
            return AutoConfig.from_pretrained(
                source.folder, trust_remote_code=spec.trust_remote_code, local_files_only=True, **changes
            )
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        # A check of several fields raises its own reason as the cause of an error that only names the check.
        said = _first_line(error.__cause__ if isinstance(error.__cause__, ValueError) else error)
        raise UserError(
            Problem("model", f"the config of '{spec.source}' cannot be used: {said}", "", "Mend it.")
        ) from error


def _check_type(spec: ModelSpec, task: TaskName, raw: dict[str, Any]) -> None:
    """Raises UserError where transformers, or the model's own code, has no head for the task."""
    kind, remote = raw.get("model_type"), raw.get("auto_map") or {}
    language = task is TaskName.CAUSAL_LM
    types = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if language else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if kind not in types:
        if remote and not spec.trust_remote_code:
            raise UserError(
                Problem(
                    "model.trust_remote_code",
                    f"'{spec.source}' needs Python code that comes with the model, and running it is not allowed",
                    "",
                    "Read that code; then set model.trust_remote_code to true, or choose another model.",
                )
            )
        if ("AutoModelForCausalLM" if language else "AutoModelForSequenceClassification") not in remote:
            head = "language-model" if language else "sequence-classification"
            named = _DECODERS if language else "bert, roberta, deberta-v2, gpt2, opt, llama, mistral, qwen2, gemma"
            raise UserError(
                Problem(
                    "model",
                    f"model type '{kind}' has no {head} head in transformers",
                    f"one of {len(types)} types, among them {named}",
                    "Choose a model of such a type.",
                )
            )
    if language and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not raw.get("is_decoder"):
        raise UserError(
            Problem(
                "model",
                f"'{spec.source}' is an encoder ('{kind}'): each of its tokens sees those after it, "
                "so it cannot write a text",
                f"a decoder, for example of type {_DECODERS}",
                "Choose such a model, or give rows with labels.",
            )
        )


def _incomplete(spec: ModelSpec, lacking: list[str]) -> Problem:
    return Problem(
        "model",
        f"the weight file of '{spec.source}' lacks {lacking[0]}"
        + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else "")
        + ", which a language model needs",
        "a checkpoint of a language model, its head included",
        "Give one that AutoModelForCausalLM wrote.",
    )


def _set_padding(model: Any, tokenizer: Any, spec: ModelSpec) -> int:
    """Make model and tokenizer ready to pad; returns the id that the model knows as padding."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(
            Problem("model", f"the tokenizer of '{spec.source}' has no token to pad with", "", "Add a pad_token to it.")
        )
    config = model.config.get_text_config()
    if not isinstance(config.pad_token_id, int) or not 0 <= config.pad_token_id < getattr(
        config, "vocab_size", len(tokenizer)
    ):
        config.pad_token_id = tokenizer.pad_token_id
    return int(config.pad_token_id)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loading report and progress bar of transformers, which would tear the search's display."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
