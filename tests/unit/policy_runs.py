"""Trainings on tiny random models, by hand: for tests of policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autopeft.domain.candidate import Candidate, Insertion, Policy, Setting
from autopeft.domain.layout import ModelLayout
from autopeft.domain.spec import TrainingSpec
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.insertion import Inserted, insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.train import Training
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from tests.unit.evaluate_models import classifier_of

CPU = torch.device("cpu")
LAYERS = 4
_DEPTH = {"bert": "num_hidden_layers", "llama": "num_hidden_layers", "gpt2": "n_layer"}


def model_of(kind: str, layers: int = LAYERS, **changes: Any) -> Any:
    """A random classifier of so many layers, frozen."""
    return classifier_of(kind, **{_DEPTH[kind]: layers}, **changes).requires_grad_(False)


def rows(number: int, size: int = 8, width: int = 7) -> Batch:
    """A random batch."""
    draw = torch.Generator().manual_seed(number)
    inputs = {
        "input_ids": torch.randint(4, 20, (size, width), generator=draw),
        "attention_mask": torch.ones(size, width, dtype=torch.long),
    }
    labels = torch.randint(0, 2, (size,), generator=draw)
    return Batch(inputs, labels, tuple(range(number * size, (number + 1) * size)), size * width)


def policy_of(name: str, **settings: Setting) -> Policy:
    """A policy at its defaults but for `settings`."""
    return Policy(name=name, settings={**POLICIES[name].facts.defaults, **settings})


def insertion_of(layout: ModelLayout, method: str = "lora", layers: tuple[int, ...] | None = None) -> Insertion:
    """A method in its usual modules at a small size."""
    chosen = METHODS[method]
    small = {name: value for name, value in (("rank", 4), ("size", 4)) if name in chosen.facts.settings}
    return Insertion(
        method=method,
        layers=tuple(range(len(layout.layers))) if layers is None else layers,
        modules=chosen.default_modules(layout),
        settings={**chosen.facts.defaults, **small},
    )


@contextmanager
def training(
    kind: str = "bert",
    policy: Policy | None = None,
    *,
    method: str = "lora",
    layers: tuple[int, ...] | None = None,
    steps: int = 8,
    seed: int = 3,
    dropout: float = 0.0,
    model: Any = None,
    batch: Callable[[int], Batch] = rows,
    spec: dict[str, Any] | None = None,
) -> Iterator[tuple[Training, Inserted]]:
    """A training that may start."""
    model = model_of(kind) if model is None else model
    layout = inspect_layout(model)
    insertion = insertion_of(layout, method, layers)
    if dropout:
        insertion = insertion.model_copy(update={"settings": {**insertion.settings, "dropout": dropout}})
    candidate = Candidate(insertions=(insertion,), learning_rate=1e-2, policy=policy)
    asked = TrainingSpec.model_validate({"steps": steps, "batch_size": 8, "warmup": 0.0, **(spec or {})})
    untouched = Untouched(model)
    with removed_afterwards(untouched):
        inserted = insert(untouched, candidate, layout, seed, steps=steps)
        batches = [batch(number) for number in range(steps * asked.gradient_accumulation)]
        yield Training(inserted, batches, asked, 1e-2, CPU, torch.float32, policy=policy, seed=seed), inserted


def head_parameters(inserted: Inserted) -> list[nn.Parameter]:
    """What is trained of the head."""
    heads = [inserted.base.get_submodule(path) for path in inserted.layout.head_paths]
    return [part for head in heads for part in head.parameters() if part.requires_grad]


def moved_layers(before: dict[str, torch.Tensor], inserted: Inserted) -> set[int]:
    """Layers in which a parameter is not what it was."""
    now = dict(inserted.base.named_parameters())
    return {
        layer.index
        for layer in inserted.layout.layers
        for name, old in before.items()
        if name.startswith(f"{layer.path}.") and not torch.equal(old, now[name])
    }


def values(inserted: Inserted) -> dict[str, torch.Tensor]:
    """Every parameter, copied."""
    return {name: part.detach().clone() for name, part in inserted.base.named_parameters()}
