"""Everything that one search was asked to do."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from autopeft.domain.budget import Budget, BudgetField
from autopeft.domain.candidate import digest_of
from autopeft.domain.devices import DEVICES, devices_of
from autopeft.domain.errors import UserError

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What a run may be called: it becomes a folder name."""
STOPPING_RUNGS = (1 / 9, 1 / 3, 1.0)
"""Where trials may be stopped, as shares of the steps: each rung has three times the training of the one before."""
DEFAULT_MODEL = "minilm"
DEFAULT_DATA = "python-docs"
NOT_ASKED_OF_TRIALS = (
    "name",
    "budget",
    "resources",
    "retries",
    "max_failure_share",
    "keep_adapters",
    "checkpoint_s",
)
"""Keys of a spec that change no trial, so that a run may go on with other values of them."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSpec(_Part):
    """The base model."""

    source: str = DEFAULT_MODEL
    """`minilm`, the path of a Hugging Face model folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """How the frozen weights are loaded; `auto` is what the model folder says."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run; refused unless asked for."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Hold the frozen weights in 4 or 8 bits by bitsandbytes, which needs a GPU; `None` holds them in `dtype`."""


class DataSpec(_Part):
    """The data set: either `source`, or at least `train` and `validation` files."""

    source: str | None = None
    """`python-docs`, a folder saved by `datasets`, or a hub name; `None` where files are given."""
    subset: str | None = None
    """Configuration name of a hub data set (`mrpc` of `glue`)."""
    train: str | None = None
    """Path of a JSONL, CSV, TSV or Parquet file, or the split's name in `source`."""
    validation: str | None = None
    test: str | None = None
    """Scored once, at the end, for points of the front only."""
    text: str = "text"
    """Column of the (first) sentence."""
    text_pair: str | None = None
    """Column of the second sentence; by default `text_pair`, where the file has one."""
    label: str = "label"
    prompt: str = "prompt"
    """Column of what a language model is given."""
    completion: str = "completion"
    """Column of what it shall write."""
    messages: str = "messages"
    """Column of chats: lists of `{role, content}`, in place of prompt and completion."""
    choices: str = "choices"
    """Column of the completions to choose among: lists of texts; read where the file has it."""
    answer: str = "answer"
    """Column of the right choice, by its index from 0 or its text; read where the file has it."""
    separator: str = "\n"
    """Put behind a prompt where neither it ends nor the completion begins with white space."""
    task: Literal["auto", "classification", "regression", "causal-lm"] = "auto"
    """`auto` is causal-lm where the rows hold prompts and completions, or messages, and no label; regression where
    every training label is a fractional number; else classification."""
    metric: Literal[
        "auto",
        "accuracy",
        "f1",
        "matthews",
        "spearman",
        "validation_loss",
        "perplexity",
        "token_accuracy",
        "choice_accuracy",
        "exact_match",
    ] = "auto"
    """The task's headline metric; `auto` is accuracy, spearman for regression, and for causal-lm choice_accuracy where
    there are choices, else validation_loss. exact_match generates answers, which costs time, so it is asked for."""
    max_tokens: int = Field(default=128, ge=2)
    """Longer texts are cut to this many tokens; of a prompt, the beginning is cut."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens generated for one answer, at most."""
    max_train_rows: int | None = Field(default=None, ge=2)
    """Train on a seeded sample of this many rows."""
    max_validation_rows: int | None = Field(default=None, ge=2)
    """Choose by a seeded sample of this many rows."""

    @model_validator(mode="before")
    @classmethod
    def _default_source(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("source") is None and value.get("train") is None:
            return {**value, "source": DEFAULT_DATA}
        return value

    @model_validator(mode="after")
    def _whole(self) -> DataSpec:
        if self.source is None and (self.train is None or self.validation is None):
            missing = "train" if self.train is None else "validation"
            raise ValueError(f"a data set of files needs train and validation; {missing} is missing")
        return self


class TrainingSpec(_Part):
    """The recipe that every candidate shares; the learning rate belongs to the candidate."""

    epochs: float = Field(default=2.0, gt=0)
    """Passes over the training rows. Two tell good candidates from bad ones; the winner may deserve more."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; takes the place of `epochs` where given."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per forward pass."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimiser step."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    gradient_checkpointing: bool = False
    """Compute every layer's forward pass again in the backward pass in place of keeping what it saved: less memory, a
    third more time, the same numbers."""
    rungs: tuple[float, ...] = (0.5, 1.0)
    """Shares of the steps after which validation quality is reported; ends with 1."""

    @model_validator(mode="after")
    def _rungs_ascend_to_one(self) -> TrainingSpec:
        if not self.rungs or self.rungs[-1] != 1.0 or any(share <= 0 for share in self.rungs):
            raise ValueError("rungs must be shares above 0 that end with 1.0")
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError("rungs must ascend")
        return self


class SamplerSpec(_Part):
    """What proposes candidates."""

    name: str = "front"
    startup_trials: int | None = Field(default=None, ge=1)
    """Trials before the model is used, random ones but for `front`; `None` is the sampler's own choice."""


def _name_alone(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _source_alone(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """`a,b` as a list; what is no text as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class ResourceSpec(_Part):
    """Where and how wide the search runs; changes no result of a trial."""

    runner: Literal["ray", "local"] = "ray"
    workers: int | None = Field(default=None, ge=1)
    """Trials at once; `None` is one per GPU, or as many as the cores carry."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """May be a fraction: several trials then share a GPU."""
    ray_address: str | None = None
    """A running cluster that this machine is part of (`auto`, `host:port`); `None` starts one here."""


DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Short names of dtypes."""


def _dtype(value: Any) -> Any:
    return DTYPES.get(value, value) if isinstance(value, str) else value


def _stopping_rule(value: Any) -> Any:
    return "front" if value is True else None if value is False else value


def _device(value: str) -> str:
    """Raises ValueError where the name of a device is not known."""
    if value not in ("cpu", "cuda"):
        try:
            devices_of(value)
        except UserError as error:
            problem = error.problems[0]
            known = f"cpu, cuda, {', '.join(DEVICES)}"
            raise ValueError(f"no such device is known; allowed: {known}. {problem.next_step}") from None
    return value


def _with_unit(value: Any) -> Any:
    """Raises ValueError for a text that is a number alone."""
    if isinstance(value, str) and value.strip().replace(".", "", 1).isdigit():
        raise ValueError("a size needs a unit, for example 12GiB or 512MB")
    return value


class PredictForSpec(_Part):
    """A model and a size that are not here, for which the memory of every candidate is predicted."""

    model: str
    """A hub id, or a folder in which a `config.json` is enough."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    seq: int = Field(ge=1)
    """Tokens of the longest row of a batch."""
    batch: int = Field(default=1, ge=1)
    """Rows of a batch."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_dtype)] = "auto"
    """How the frozen weights are loaded; `auto` is what the model's config says. Also `bf16`, `fp16`, `fp32`."""
    device: Annotated[str, AfterValidator(_device)] = "cuda"
    """`cpu`, or a GPU by name (`cuda` is any): what it computes in, and with which attention."""

    def __str__(self) -> str:
        parts = [f"{self.batch} x {self.seq} tokens", *([self.dtype] if self.dtype != "auto" else []), self.device]
        return f"{self.model} ({', '.join(parts)})"


def pairs_of(value: Any) -> Any:
    """`model=DIR,seq=768` as a mapping; what is no text as it is.

    Raises:
        ValueError: where a part of it is not one `KEY=VALUE`.
    """
    if not isinstance(value, str):
        return value
    found = {}
    for part in value.split(","):
        key, equals, text = part.partition("=")
        if not equals or not key.strip() or key.strip() in found:
            raise ValueError(
                f"'{part}' is not one KEY=VALUE; for example model=meta-llama/Llama-3.2-3B,seq=768,batch=4,dtype=bf16"
            )
        found[key.strip()] = text.strip()
    return found


class SearchSpec(_Part):
    """One search, completely; frozen, saved with the run, written as YAML or as flags."""

    name: str | None = Field(default=None, pattern=f"^{NAME_PATTERN}$")
    """Name of the run and of its folder; `None` makes one from the spec."""
    model: Annotated[ModelSpec, BeforeValidator(_source_alone, json_schema_input_type=ModelSpec | str)] = ModelSpec()
    data: Annotated[DataSpec, BeforeValidator(_source_alone, json_schema_input_type=DataSpec | str)] = DataSpec()
    space: str = "lora"
    """Name of a search space, or the path of a YAML file."""
    objectives: tuple[str, ...] = ()
    """Names of objectives; empty is the task's metric and `train_peak_bytes`."""
    max_memory: Annotated[ByteSize | None, BeforeValidator(_with_unit)] = Field(default=None, gt=0)
    """Limit on `train_peak_bytes`, in bytes or as `12GiB`; what exceeds it, or is predicted to, is infeasible."""
    predict_for: Annotated[PredictForSpec | None, BeforeValidator(pairs_of, json_schema_input_type=str | None)] = None
    """A model and a size that are not here: adds the objective `predicted_peak_bytes`, the memory that a candidate,
    carried over to that model, is predicted to need there. Also as `model=…,seq=…,batch=…,dtype=…,device=…`."""
    training: TrainingSpec = TrainingSpec()
    early_stopping: Annotated[
        Literal["front", "mo-asha"] | None,
        BeforeValidator(_stopping_rule, json_schema_input_type=Literal["front", "mo-asha"] | bool | None),
    ] = None
    """Stop trials at a rung: `front` (or true) those that are out of reach of the best that need no more memory,
    `mo-asha` those that are not among the best third by fronts of quality and memory, until they are (with the sampler
    `random` that is MO-ASHA, Schmucker et al. 2021). The rungs are then 1/9, 1/3 and 1 of the steps, unless
    `training.rungs` says otherwise."""
    repeat_share: float = Field(default=0.0, ge=0, le=0.5)
    """At most this share of the trials, and of all their steps, goes to training promising candidates again with
    another seed; the front is then one of posterior means."""
    sampler: Annotated[SamplerSpec, BeforeValidator(_name_alone, json_schema_input_type=SamplerSpec | str)] = (
        SamplerSpec()
    )
    warm_start: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=tuple[str, ...] | str)] = ()
    """Earlier runs, by name or folder: points of their fronts are tried first, and the sampler `front` expects what
    they saw, as far as its own results bear it out. Other samplers are given the points alone."""
    start_with: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=tuple[str, ...] | str)] = ()
    """Files of candidates that are tried before anything else: a `candidate.yaml`, a `recipe.yaml`, or an
    `adapter_config.json` of LoRA."""
    first_guesses: bool = True
    """Whether the guesses that come with the space are tried first. They and the points of earlier fronts take a third
    of a budget of trials at most; without such a budget, 6 trials."""
    seed: int = Field(default=0, ge=0)
    budget: BudgetField = Budget(trials=32)
    """When to end: `64`, `2h`, `8gpu-h`, or several joined by commas."""
    resources: ResourceSpec = ResourceSpec()
    retries: int = Field(default=2, ge=0)
    """How often a trial whose worker died is started again."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """The search stops where more than this share of at least 10 ended trials crashed, were lost or invalid."""
    keep_adapters: Literal["front", "all"] = "front"
    """Whether adapters of trials that a front point dominates stay on disk."""
    checkpoint_s: float | None = Field(default=60.0, ge=0)
    """Seconds after which a trial in training saves where it stands, beside every rung; a trial that takes long to save
    waits longer. `None` saves nothing: an interrupted trial then starts from its first step."""

    @model_validator(mode="before")
    @classmethod
    def _rungs_to_stop_at(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value.get("early_stopping"):
            return value
        training = value.get("training", {})
        if not isinstance(training, dict) or "rungs" in training:
            return value
        return {**value, "training": {**training, "rungs": STOPPING_RUNGS}}

    @model_validator(mode="after")
    def _nothing_twice(self) -> SearchSpec:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives names one twice")
        for key in ("warm_start", "start_with"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key} names one twice")
        return self

    @cached_property
    def digest(self) -> str:
        """Identity of the search: two specs with one digest ask for the same trials.

        Name, budget, resources, retries, what is kept on disk and how often a trial is saved do not count.
        """
        said = self.model_dump(mode="json", exclude=set(NOT_ASKED_OF_TRIALS))
        if not self.training.gradient_checkpointing:
            del said["training"]["gradient_checkpointing"]  # came later than the first runs
        if self.predict_for is None:
            del said["predict_for"]  # so did this
        if self.early_stopping is None:
            del said["early_stopping"]
        elif self.early_stopping == "front":
            said["early_stopping"] = True  # as it was written when there was one rule
        if not self.repeat_share:
            del said["repeat_share"]
        for key in ("warm_start", "start_with"):
            if not said[key]:
                del said[key]
        if self.first_guesses:
            del said["first_guesses"]
        if self.data.max_validation_rows is None:
            del said["data"]["max_validation_rows"]  # and this
        return digest_of(said)

    @property
    def run_name(self) -> str:
        """The given name, or one that the same spec always gets: model, data, space and six digits."""
        if self.name is not None:
            return self.name
        data = self.data.source or (self.data.train or "")
        parts = (self.model.source, data, self.space)
        return "-".join([*(_slug(part) for part in parts), self.digest[:6]])


def _slug(text: str) -> str:
    """Last part of a path or hub id without its suffix, in letters a folder name may have."""
    parts = [part for part in re.split(r"[/\\]", text) if part]
    last = parts[-1] if parts else "x"
    stem = re.sub(r"\.(jsonl|json|csv|tsv|parquet|yaml|yml)$", "", last)
    if stem in ("train", "training") and len(parts) > 1:
        stem = parts[-2]
    return re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-._")[:30] or "x"
