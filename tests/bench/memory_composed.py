"""Memory put together from blocks of known kinds against traces of whole models: error, and seconds of both.

    python tests/bench/memory_composed.py [--candidates 200] [--picture FILE.svg]

Random candidates of every method that fits (one, or a mix of two, in random layers at a random size) on a model
shaped like BERT-base and on one like Llama-3.2-3B. Printed are the seconds until a new shape's first candidate is
known, of a candidate of known kinds, and of one with a new kind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from scatter import scatter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.predictor import StepPredictor
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import METHODS

SLOW = ("corda", "full", "full-layers")
"""Left out of the random draw, since each of their traces takes as long as ten others."""


def bert() -> Any:
    """BERT-base with a classification head, in float32."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(BertConfig(num_labels=2))


def llama() -> Any:
    """Llama-3.2-3B, in bfloat16."""
    config = LlamaConfig(
        hidden_size=3072,
        num_hidden_layers=28,
        intermediate_size=8192,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


SHAPES = {
    "BERT-base, 32 x 128, float32": (bert, Setup(32, 128, target="cuda")),
    "Llama-3.2-3B, 4 x 768, bfloat16": (llama, Setup(4, 768, target="cuda", lower=torch.bfloat16)),
}


def drawn(layout: ModelLayout, draw: random.Random) -> Candidate:
    """One method or two, where they fit."""
    while True:
        names = draw.sample([name for name in METHODS if name not in SLOW], draw.choice((1, 1, 2)))
        insertions = []
        for name in names:
            method = METHODS[name]
            settings = dict(method.facts.defaults)
            if method.facts.knob and method.facts.ladder:
                settings[method.facts.knob] = draw.choice(method.facts.ladder)
            depth = len(layout.layers)
            chosen = sorted(draw.sample(range(depth), draw.randint(1, depth)))
            insertions.append(
                Insertion(
                    method=name,
                    layers=tuple(chosen if method.facts.takes_layers else range(depth)),
                    modules=method.default_modules(layout) if method.facts.takes_modules else (),
                    settings=settings,
                )
            )
        occupied = [METHODS[one.method].occupied(one, layout) for one in insertions]
        alone = any(METHODS[one.method].facts.alone for one in insertions)
        clash = len(insertions) > 1 and (alone or bool(occupied[0] & occupied[1]))
        if not clash and not any(METHODS[one.method].problems(one, layout) for one in insertions):
            return Candidate(insertions=tuple(insertions), learning_rate=1e-3)


def main() -> None:
    """Print errors and times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    points = []
    for title, (build, setup) in SHAPES.items():
        draw = random.Random(0)
        began = time.perf_counter()
        model = build()
        model.requires_grad_(False)
        model.config.problem_type = "single_label_classification"
        layout = inspect_layout(model)
        predictor = StepPredictor(MetaModel(model, layout), setup)
        plain = Insertion(
            method="lora",
            layers=tuple(range(len(layout.layers))),
            modules=METHODS["lora"].default_modules(layout),
            settings=dict(METHODS["lora"].facts.defaults),
        )
        predictor.predict(Candidate(insertions=(plain,), learning_rate=1e-3))
        first = time.perf_counter() - began
        errors: list[tuple[float, str]] = []
        seconds: dict[str, list[float]] = {"new kind": [], "known kinds": [], "whole model": []}
        failed: dict[str, str] = {}
        for _ in range(asked.candidates):
            wanted = drawn(layout, draw)
            name = "+".join(one.method for one in wanted.insertions)
            try:
                traces = predictor.traces
                start = time.perf_counter()
                found = predictor.predict(wanted)
                seconds["known kinds" if predictor.traces == traces else "new kind"].append(time.perf_counter() - start)
                start = time.perf_counter()
                predictor.predict(wanted)
                seconds["known kinds"].append(time.perf_counter() - start)
                start = time.perf_counter()
                whole = predictor.traced(wanted)
                seconds["whole model"].append(time.perf_counter() - start)
            except Exception as error:  # of a method that defies tracing
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
                continue
            errors.append((found.train_peak_bytes / whole.train_peak_bytes - 1, f"{name} in {wanted.layers()}"))
            points.append((whole.train_peak_bytes / 2**30, found.train_peak_bytes / 2**30, f"{title}: {name}"))
        sizes = sorted(abs(error) for error, _ in errors)
        print(f"{title}: first candidate of the shape after {first:.1f} s")
        print(f"  {len(sizes)} candidates: median {statistics.median(sizes):.4%}, worst {sizes[-1]:.4%}")
        for kind, spent in seconds.items():
            if spent:
                print(
                    f"  {kind}: median {statistics.median(spent) * 1e3:.2f} ms, "
                    f"worst {max(spent) * 1e3:.1f} ms ({len(spent)})"
                )
        for error, name in sorted(errors, key=lambda one: -abs(one[0]))[:5]:
            print(f"  {error:+.4%} {name}")
        for name, why in failed.items():
            print(f"  no prediction for {name}: {why}")
    if asked.picture:
        scatter(points, "traced GiB", "composed GiB", asked.picture)


if __name__ == "__main__":
    main()
