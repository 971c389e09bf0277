"""Predicted against published memory: peft's method comparison on MetaMathQA (Llama-3.2-3B, one L40S).

    python tests/bench/memory_published.py --data peft-memory-measured.csv [--picture FILE.svg]

The published number is what the caching allocator had reserved at most in a whole run. Predicted is what `autopeft
estimate --peft-config` says of such a script: the step on the longest batch, after a short one and an emptied cache.
That is the order in that program: it sorts the rows of twenty batches from long to short, empties the cache every ten
steps, and keeps `outputs` (logits, keys and values) until the next forward pass. The length of its longest batch is not
published: it is the one constant that is fitted, on ten runs; the others are foretold with it.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from peft.tuners.osf import layer as osf
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from autopeft.domain.memory import Prediction
from autopeft.evaluate.memory.course import earlier
from autopeft.evaluate.memory.external import FULL, PeftFile, external_timeline, read_peft
from autopeft.evaluate.memory.predictor import prediction_of
from autopeft.evaluate.memory.setup import Setup

ROWS, EVALUATED_ROWS = 4, 50
LENGTHS = range(688, 705, 4)
"""Tokens of the longest batch that are tried; the program cuts at 768."""
WORKSPACE = 8_519_680
"""cuBLAS on an Ada GPU: `:4096:2:16:8`, in KiB."""
FITTED = 10
LAYERS, HIDDEN, KEYS = 28, 3072, 1024

WHY = {
    "PREFIX_TUNING": "not the training: see the line on its evaluation",
    "OSF": "another version of peft was measured: see the line on what that one held",
}
"""What is known of the methods that are further off than the rest."""


def model() -> Any:
    """Llama-3.2-3B by its shapes, in bfloat16."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=8192,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def configuration(row: dict[str, str]) -> PeftFile:
    """Of one run, as `--peft-config` reads it."""
    if not row["peft_config_json"].startswith("{"):
        return read_peft(FULL)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter_config.json"
        file.write_text(row["peft_config_json"])
        return read_peft(str(file))


def predicted(row: dict[str, str], longest: int) -> Prediction:
    """Of one run, for a longest batch of so many tokens."""
    setup = Setup(ROWS, longest, caches=True, holds_outputs=True)
    in_float32 = row["autocast_adapter_dtype"] == "True"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, step = (
            external_timeline(model(), configuration(row), one, adapters_in_float32=in_float32)
            for one in (earlier(setup), setup)
        )
    return prediction_of(step, WORKSPACE, before)


@contextmanager
def osf_as_measured() -> Iterator[None]:
    """Inside, OSF holds what peft held until 0.19: all singular vectors, and each weight put together anew.

    Its source of that time keeps U, S and V of the frozen directions of every matrix, beside the matrix itself, and
    multiplies the input with their product and that of the trained ones, which autograd keeps until the backward pass.
    """

    def update(self: Any, name: str, effective_rank: int, config: Any, **settings: Any) -> None:
        weight = self.get_base_layer().weight
        outputs, inputs = weight.shape
        low = min(weight.shape) - effective_rank
        self.effective_rank[name] = effective_rank
        self._osf_U_high[name] = weight.new_empty(outputs, effective_rank)
        self._osf_S_low_init[name] = weight.new_empty(effective_rank)  # in this version it has no other place
        self._osf_V_high[name] = weight.new_empty(effective_rank, inputs)
        shapes = {"U_low": (outputs, low), "S_low": (low,), "V_low": (low, inputs)}
        parts = {key: nn.Parameter(weight.new_empty(shape)) for key, shape in shapes.items()}
        self.osf_svd_params[name] = nn.ParameterDict(parts)
        self.set_adapter(self.active_adapters)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        name = self.active_adapters[0]
        low = self.osf_svd_params[name]
        frozen = (self._osf_U_high[name] * self._osf_S_low_init[name]) @ self._osf_V_high[name]
        return F.linear(x, frozen + (low["U_low"] * low["S_low"]) @ low["V_low"])

    with patch.object(osf.OSFLayer, "update_layer", update), patch.object(osf.Linear, "forward", forward):
        yield


def reserved(row: dict[str, str], longest: int) -> tuple[int, int]:
    """Predicted bytes and trainable parameters."""
    found = predicted(row, longest)
    assert found.train_peak_reserved_bytes is not None
    return found.train_peak_reserved_bytes, found.trainable_parameters


def notes(rows: list[dict[str, str]], longest: int) -> None:
    """Print what explains the two methods that are off."""
    for row in rows:
        published = float(row["accelerator_memory_max"])
        if row["peft_type"] == "OSF":
            with osf_as_measured():
                error = reserved(row, longest)[0] / published - 1
            print(f"OSF, holding what the measured version held: {error:+.2%}")
        if row["peft_type"] == "PREFIX_TUNING":
            tokens = json.loads(row["peft_config_json"])["num_virtual_tokens"]
            prompt = EVALUATED_ROWS * tokens * 2 * LAYERS * KEYS * 4
            print(
                f"prefix of {tokens} tokens: an evaluation of {EVALUATED_ROWS} rows asks for {prompt / 1e9:.3f} GB in "
                f"one piece (float32, before it is cast) on top of what training left cached; without it the published "
                f"peak is {(published - prompt) / 1e9:.3f} GB"
            )


def main() -> None:
    """Fit on ten, foretell the others, print all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", default="", help="runs with this in their name")
    parser.add_argument("--longest", type=int, help="in place of a fit")
    asked = parser.parse_args()
    rows = [row for row in csv.DictReader(asked.data.open()) if asked.only in row["experiment"]]
    kinds = sorted({row["peft_type"] for row in rows})
    # One run of every third method, so that the constant is not that of a family.
    fitted = [next(row for row in rows if row["peft_type"] == kind) for kind in kinds[::3]][:FITTED]
    began = time.perf_counter()
    errors = {}
    for longest in [asked.longest] if asked.longest else LENGTHS:
        found = [reserved(row, longest)[0] / float(row["accelerator_memory_max"]) - 1 for row in fitted]
        errors[longest] = statistics.median(abs(one) for one in found)
        print(f"longest {longest}: median error {errors[longest]:.2%} on {len(fitted)} runs", flush=True)
    best = min(errors, key=lambda one: (errors[one], one))
    print(f"longest batch: {best} tokens a row ({time.perf_counter() - began:.0f} s)\n")
    print("| run | published GB | predicted GB | error | parameters |\n| --- | --- | --- | --- | --- |")
    held_out: list[tuple[float, str, str]] = []
    points = []
    for row in rows:
        bytes_, count = reserved(row, best)
        published = float(row["accelerator_memory_max"])
        error = bytes_ / published - 1
        used = any(row is one for one in fitted)
        same = "equal" if count == int(row["num_trainable_params"]) else f"{count} for {row['num_trainable_params']}"
        mark = " (fitted)" if used else ""
        print(
            f"| {row['experiment']}{mark} | {published / 1e9:.3f} | {bytes_ / 1e9:.3f} | {error:+.2%} | {same} |",
            flush=True,
        )
        points.append((published / 1e9, bytes_ / 1e9, row["experiment"]))
        if not used:
            held_out.append((abs(error), row["experiment"], row["peft_type"] or "FULL"))
    print()
    notes(rows, best)
    sizes = sorted(one for one, _, _ in held_out) or [0.0]
    print(f"\n{len(sizes)} runs foretold: median {statistics.median(sizes):.2%}, mean {statistics.mean(sizes):.2%},")
    print(f"95th percentile {sizes[min(len(sizes) - 1, round(0.95 * (len(sizes) - 1)))]:.2%}, worst {sizes[-1]:.2%}")
    for error, name, kind in sorted(held_out, reverse=True)[:5]:
        print(f"  {error:.2%} {name}: {WHY.get(kind, 'within the noise of the allocator')}")
    if asked.picture:
        from scatter import scatter

        scatter(points, "published GB reserved", "predicted GB reserved", asked.picture)


if __name__ == "__main__":
    main()
