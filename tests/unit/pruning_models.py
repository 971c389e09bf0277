"""Toy models with PEFT modules whose weights are all random, to be pruned, and masks set by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from autopeft.domain.candidate import Candidate, Insertion, Pruning, Setting
from autopeft.domain.layout import ModelLayout, Role
from autopeft.evaluate.insertion import Inserted, insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.pruning.criteria import DEFAULTS
from autopeft.evaluate.pruning.live import live_sites
from autopeft.evaluate.pruning.phase import Estimation, wiring_of
from autopeft.evaluate.pruning.shape import Site, head_shape, sites
from autopeft.evaluate.untouched import Untouched
from tests.unit.evaluate_models import batch, config_of

KINDS = ("bert", "llama", "gpt2")
MORE_KINDS = ("roberta", "distilbert", "opt", "qwen2", "mistral")
METHODS = ("lora", "rslora", "serial", "parallel")
HALVES: dict[str, Setting] = {**DEFAULTS, "heads": 0.5, "ffn": 0.4, "modules": 0.3, "ranks": 0.5}


def insertion_of(method: str, layout: ModelLayout, ranks: int = 4, layers: tuple[int, ...] = (0, 1, 2)) -> Insertion:
    if method in ("lora", "rslora"):
        roles = tuple(sorted(str(role) for role in layout.roles()))
        settings: dict[str, Setting] = {"rank": ranks, "alpha_ratio": 2.0, "dropout": 0.0}
    else:
        roles = (Role.ATTENTION_OUTPUT.value, Role.FFN_OUT.value)
        settings = {"size": ranks, "scale": 2.0, "activation": "relu"}
    return Insertion(method=method, layers=layers, modules=roles, settings=settings)


def toy(kind: str) -> Any:
    """A frozen classifier without dropout.

    At the usual width of first weights, whatever is taken out of so small a one would be lost in rounding.
    """
    torch.manual_seed(0)
    config = config_of(kind, **({"init_std": 0.2} if kind == "opt" else {"initializer_range": 0.2}))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.config.pad_token_id = model.config.pad_token_id or 0
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)
    return model.requires_grad_(False)


class Bed:
    """A model with insertions and the start of an estimation in it."""

    def __init__(
        self,
        kind: str,
        methods: Sequence[str] = ("lora",),
        criterion: str = "light-peft",
        seed: int = 3,
        steps: int = 4,
        passes: int = 1,
        model: Any = None,
        **settings: Setting,
    ) -> None:
        self.model = toy(kind) if model is None else model
        self.layout = inspect_layout(self.model)
        self.untouched = Untouched(self.model)
        self.pruning = Pruning(criterion=criterion, settings={**HALVES, **settings})
        insertions = tuple(insertion_of(method, self.layout) for method in methods)
        self.candidate = Candidate(insertions=insertions, learning_rate=1e-2, pruning=self.pruning)
        self.wiring = wiring_of(self.model, self.candidate, self.layout, batch(), nullcontext)
        self.inserted: Inserted = insert(self.untouched, self.candidate, self.layout, seed)
        self.sites: tuple[Site, ...] = sites(insertions, self.layout)
        self.live = live_sites(self.model, self.layout, self.sites)
        self.estimation = Estimation(
            self.untouched, self.inserted, self.pruning, self.wiring, seed=seed, steps=steps, passes=passes
        )

    @property
    def masks(self) -> Any:
        return self.estimation._masks

    def masks_by_path(self) -> dict[str, torch.Tensor]:
        """Factor of each input of the modules behind heads and units."""
        found = {}
        for layer in self.layout.layers:
            output, out = layer.module(Role.ATTENTION_OUTPUT), layer.module(Role.FFN_OUT)
            assert output is not None
            assert out is not None
            heads = self.masks.heads[layer.index].values.detach()
            found[output.path] = heads.repeat_interleave(output.in_features // len(heads))
            found[out.path] = self.masks.units[layer.index].values.detach()
        return found

    def randomise(self) -> None:
        """Let every PEFT weight say something; they start with products of zero."""
        draw = torch.Generator().manual_seed(17)
        with torch.no_grad():
            for live in self.live.values():
                for part in (live.down, live.up):
                    for parameter in part.parameters():
                        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))

    def train(self, steps: int, passes: int = 1, learning_rate: float = 1e-2) -> None:
        optimizer = self.inserted.optimizer(learning_rate, 0.0)
        self.model.train()
        for step in range(steps):
            for one in range(passes):
                (self.model(**padded(step * passes + one)).loss / passes).backward()
            optimizer.step()
            optimizer.zero_grad()
        self.model.eval()

    def logits(self, seed: int = 0) -> torch.Tensor:
        self.model.eval()
        with torch.no_grad():
            return self.model(**padded(seed)).logits


def padded(seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with rows of different lengths."""
    found = batch(seed)
    found["attention_mask"] = found["attention_mask"].clone()
    found["attention_mask"][1, 5:] = 0
    found["attention_mask"][2, 3:] = 0
    found["input_ids"] = found["input_ids"].masked_fill(found["attention_mask"] == 0, 0)
    return found


@contextmanager
def masked(
    model: Any,
    layout: ModelLayout,
    heads: Sequence[Sequence[int]] | None,
    units: Sequence[Sequence[int]] | None,
    factors: Mapping[str, torch.Tensor] | None = None,
    within: bool = False,
) -> Iterator[None]:
    """Zero all but these groups of heads and these units, by hooks that know nothing of the code under test.

    `within` says that `heads` are query heads.
    """
    handles = []

    def put(path: str, width: int, kept: Sequence[int]) -> None:
        keep = torch.zeros(width)
        keep[list(kept)] = 1.0
        keep = keep * (factors or {}).get(path, torch.ones(width))

        def hook(module: nn.Module, arguments: Any) -> Any:
            return (arguments[0] * keep, *arguments[1:])

        handles.append(model.get_submodule(path).register_forward_pre_hook(hook))

    for layer in layout.layers:
        output, out = layer.module(Role.ATTENTION_OUTPUT), layer.module(Role.FFN_OUT)
        shape = head_shape(layer, layout)
        assert output is not None
        assert out is not None
        assert shape is not None
        if heads is not None:
            each = shape.head_dim if within else shape.queries * shape.head_dim
            kept = [group * each + place for group in heads[layer.index] for place in range(each)]
            put(output.path, output.in_features, kept)
        if units is not None:
            put(out.path, out.in_features, units[layer.index])
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
