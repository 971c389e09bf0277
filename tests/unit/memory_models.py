"""Models on `meta` and the same ones with weights, to compare what is foretold with what is tracked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.domain.spec import TrainingSpec
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.forecast import Forecast
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import METHODS, Calibration
from autopeft.evaluate.pruning.phase import Estimation, wiring_of
from autopeft.evaluate.train import Training
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from tests.unit.evaluate_models import CONFIGS, WORDS, config_of

ROWS, TOKENS = 4, 11
STEPS = 16


def model_of(
    kind: str, layers: int = 4, dtype: torch.dtype = torch.float32, device: str = "cpu", **changes: Any
) -> Any:
    """A classifier of so many layers, everything frozen, its head in float32, as `load_base_model` makes it."""
    from transformers import AutoModelForSequenceClassification

    depth = "n_layer" if "n_layer" in CONFIGS[kind][1] else "n_layers" if "n_layers" in CONFIGS[kind][1] else ""
    config = config_of(kind, **{depth or "num_hidden_layers": layers}, **changes)
    config.problem_type = "single_label_classification"
    config.pad_token_id = config.pad_token_id or 0
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()
    layout = inspect_layout(model)
    for path in layout.head_paths:
        model.get_submodule(path).float()
    return model.requires_grad_(False)


def batch(rows: int = ROWS, tokens: int = TOKENS, padded: bool = True) -> Batch:
    """Rows of random words; the last one is short where some shall be."""
    draw = torch.Generator().manual_seed(rows * 1000 + tokens)
    ids = torch.randint(4, len(WORDS), (rows, tokens), generator=draw)
    mask = torch.ones_like(ids)
    if padded:
        mask[-1, -3:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Batch(inputs, torch.arange(rows) % 2, tuple(range(rows)), int(mask.sum()))


def setup_of(dtype: torch.dtype = torch.float32, **changes: Any) -> Setup:
    """Of `batch()`, on the CPU."""
    lower = torch.bfloat16 if dtype == torch.bfloat16 else None
    return Setup(**{"rows": ROWS, "tokens": TOKENS, "target": "cpu", "lower": lower, **changes})


@cache
def forecast_of(kind: str, layers: int = 4, dtype: torch.dtype = torch.float32, **changes: Any) -> Forecast:
    """A forecast of a model on `meta`, with what it learned from one test to the next."""
    model = model_of(kind, layers, dtype, "meta")
    setup, rows = setup_of(dtype, **changes), [batch()] * STEPS
    return Forecast(MetaModel(model, inspect_layout(model)), setup, seed=3, steps=STEPS, batches=rows)


def candidate(
    layout: ModelLayout, method: str = "lora", layers: Sequence[int] = (0, 1, 2, 3), **settings: Any
) -> Candidate:
    """One method in some layers, in its usual modules."""
    facts = METHODS[method].facts
    insertion = Insertion(
        method=method,
        layers=tuple(layers) if facts.takes_layers else tuple(range(len(layout.layers))),
        modules=METHODS[method].default_modules(layout) if facts.takes_modules else (),
        # SHiRA takes as many entries as LoRA of the rank would, which these keys and values have not at the usual one.
        settings={**facts.defaults, **({"rank": 2} if method == "shira" else {}), **settings},
    )
    return Candidate(insertions=(insertion,), learning_rate=1e-3)


def tracked(
    kind: str, wanted: Candidate, layers: int = 4, dtype: torch.dtype = torch.float32, **spec: Any
) -> tuple[int, int]:
    """Peak bytes over `STEPS` real steps on the CPU, after the pruning if there is one, and trainable parameters."""
    model = model_of(kind, layers, dtype)
    layout, untouched = inspect_layout(model), Untouched(model)
    rows = batch()
    lower = torch.bfloat16 if dtype == torch.bfloat16 else None
    calibration = Calibration(
        [{**rows.inputs, "labels": rows.labels}],
        lambda: torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower is not None),
    )
    with removed_afterwards(untouched):
        wiring = wiring_of(model, wanted, layout, rows.inputs, nullcontext) if wanted.pruning is not None else None
        inserted = insert(untouched, wanted, layout, 3, steps=STEPS, calibration=calibration)
        if wanted.pruning is not None and wiring is not None:
            Estimation(untouched, inserted, wanted.pruning, wiring, seed=3, steps=1, passes=1).prune()
        passes = spec.get("gradient_accumulation", 1)
        recipe = TrainingSpec(steps=STEPS, rungs=(1.0,), **spec)
        training = Training(
            inserted, [rows] * STEPS * passes, recipe, 1e-3, torch.device("cpu"), dtype, policy=wanted.policy, seed=3
        )
        for _ in training.run():
            pass
        peak = training.meter.peak()
        assert peak is not None
        return peak.live_bytes, sum(part.numel() for part in inserted.trainable())


class Stack(nn.Module):
    """Linear layers one behind the other, of which some train."""

    def __init__(self, width: int, depth: int, trained: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        for index, block in enumerate(self.blocks):
            block.requires_grad_(index in trained)

    def forward(self, hidden: torch.Tensor) -> Any:
        """`[rows, width] -> loss`."""
        for block in self.blocks:
            hidden = block(hidden)

        class Output:
            loss = hidden.sum()

        return Output
