"""A tiny encoder and a tiny decoder, a task that they can learn by heart, and the training of one insertion on it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.insertion import Inserted, Untouched, insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS, Calibration
from tests.unit.evaluate_models import WORDS, config_of

gc.freeze()  # every removal collects garbage, which would look through all that the libraries loaded, for a second

DECODERS = ("gpt2", "opt", "llama", "qwen2", "gemma", "mistral")

RELOAD = """
import sys
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

kind, base, adapter, inputs, found = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(base)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    save_file({"logits": model(**load_file(inputs)).logits.contiguous()}, found)
"""
"""All that a person needs who has peft and never heard of this project."""


@dataclass
class Base:
    """A base model, as a trial finds it."""

    kind: str
    model: Any
    layout: ModelLayout
    untouched: Untouched


def base_of(kind: str, seed: int = 0) -> Base:
    """A frozen random model: decoders as language models, encoders as classifiers of two labels."""
    auto = AutoModelForCausalLM if kind in DECODERS else AutoModelForSequenceClassification
    torch.manual_seed(seed)
    # At the usual 0.02 so narrow a model says the same of every text, and there is nothing to learn by heart.
    model = auto.from_config(config_of(kind, initializer_range=0.2)).eval().requires_grad_(False)
    return Base(kind, model, inspect_layout(model), Untouched(model))


def fitting(name: str, layout: ModelLayout, layers: tuple[int, ...]) -> Insertion:
    """The method at its defaults in these layers, its knob at the first step of the ladder that fits the model.

    Where none does, the last one tried, with which `Method.problems` says why.
    """
    method = METHODS[name]
    settings, modules = dict(method.facts.defaults), method.default_modules(layout)
    for value in method.facts.ladder or (None,):
        if value is not None:
            settings = {**settings, str(method.facts.knob): value}
        found = Insertion(method=name, layers=layers, modules=modules, settings=settings)
        if not method.problems(found, layout):
            break
    return found


@cache
def bert_base_layout() -> ModelLayout:
    """12 layers, 768 wide, without weights."""
    with torch.device("meta"):
        return inspect_layout(AutoModelForSequenceClassification.from_config(BertConfig()))


def batches_of(kind: str, count: int = 2, rows: int = 6) -> list[dict[str, torch.Tensor]]:
    """Random texts of 8 tokens, the same every time; labels of the classifier are random too, to be learnt by heart."""
    draw = torch.Generator().manual_seed(11)
    found = []
    for _ in range(count):
        ids = torch.randint(4, len(WORDS), (rows, 8), generator=draw)
        labels = ids.clone() if kind in DECODERS else torch.randint(0, 2, (rows,), generator=draw)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def calibration_of(kind: str) -> Calibration:
    """The batches of training, in full precision."""
    return Calibration(batches_of(kind), nullcontext)


def logits_of(model: Any, kind: str, batch: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """In evaluation mode, `[rows, labels]` or `[rows, tokens, vocabulary]`; the modes stay as they were."""
    inputs = {name: tensor for name, tensor in (batch or inputs_of(kind)).items() if name != "labels"}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits
        if logits.dim() == 3:  # prompts of peft's make them longer than the row, at its beginning
            logits = logits[:, -inputs["input_ids"].shape[1] :]
    for module, mode in modes.items():
        module.training = mode
    return logits


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    """What logits are compared on."""
    return {name: tensor for name, tensor in batches_of(kind)[0].items() if name != "labels"}


def put_in(base: Base, insertion: Insertion, steps: int, seed: int = 3) -> Inserted:
    """The insertion alone in the model."""
    candidate = Candidate(insertions=(insertion,), learning_rate=1e-3)
    return insert(base.untouched, candidate, base.layout, seed, steps=steps, calibration=calibration_of(base.kind))


@contextmanager
def inserted_in(base: Base, insertion: Insertion, steps: int = 1, seed: int = 3) -> Iterator[Inserted]:
    """`put_in`, and the base is as before when it ends.

    As `removed_afterwards`, without its pass of the garbage collector, which takes longer than all the rest here.
    """
    try:
        yield put_in(base, insertion, steps, seed)
    finally:
        base.untouched.restore()


def task_loss(model: Any, kind: str) -> float:
    """Cross-entropy over the training rows in evaluation mode, from the logits: without what a method adds to it."""
    found = []
    for batch in batches_of(kind):
        logits, labels = logits_of(model, kind, batch), batch["labels"]
        if kind in DECODERS:  # virtual tokens may stand before the text
            logits, labels = logits[:, -labels.shape[1] : -1].flatten(0, 1), labels[:, 1:].flatten()
        found.append(torch.nn.functional.cross_entropy(logits, labels).item())
    return sum(found) / len(found)


def train(base: Base, inserted: Inserted, steps: int, learning_rate: float) -> list[float]:
    """The losses of `steps` steps on two batches in turn; the head gets no gradient, so the method does the work."""
    optimizer = inserted.optimizer(learning_rate, 0.0)
    head = [part for path in base.layout.head_paths for part in inserted.base.get_submodule(path).parameters()]
    batches, losses = batches_of(base.kind), []
    for step in range(1, steps + 1):
        inserted.model.train()
        loss = inserted.model(**batches[step % len(batches)]).loss
        loss.backward()
        for part in head:
            part.grad = None
        inserted.before_update()
        optimizer.step()
        inserted.after_step(step)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def trained_tensors(inserted: Inserted) -> dict[str, torch.Tensor]:
    """Copies of all that is trained, by name."""
    return {name: part.detach().clone() for name, part in inserted.model.named_parameters() if part.requires_grad}


def reloaded_elsewhere(base: Base, adapter: Path, folder: Path) -> torch.Tensor:
    """Logits of the adapter on the saved base model, from a new process that has peft alone."""
    from safetensors.torch import load_file, save_file

    base.model.save_pretrained(folder / "base")
    inputs, found = folder / "inputs.safetensors", folder / "logits.safetensors"
    save_file(inputs_of(base.kind), inputs)
    auto = "AutoModelForCausalLM" if base.kind in DECODERS else "AutoModelForSequenceClassification"
    command = [sys.executable, "-c", RELOAD, auto, *map(str, (folder / "base", adapter, inputs, found))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder, timeout=120)
    return load_file(found)["logits"]


def written_settings(folder: Path) -> Mapping[str, Any]:
    """The `adapter_config.json` of a saved adapter."""
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
