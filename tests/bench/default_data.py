"""What the default data costs and teaches: seconds per epoch on one thread, and accuracy of small and large adapters.

    python tests/bench/default_data.py --train 100 --longest 300 --epochs 2

Prints one line per size and adapter. Wall seconds suffer from whatever else runs; the processor seconds of the one
thread do not, so an idle machine needs about as many wall seconds as these.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, TaskType, get_peft_model
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import get_scheduler

from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ModelSpec, TrainingSpec
from autopeft.evaluate.base_model import load_base_model
from autopeft.evaluate.data import python_docs
from autopeft.evaluate.data.batches import Batch, Padding, evaluation_batches, plan, tokenised, train_batches
from autopeft.evaluate.data.table import Split
from autopeft.evaluate.quality import metrics

MAX_TOKENS = 128
ADAPTERS = {
    "LoRA r=8, 6 layers": (8, range(6), 3e-3),
    "LoRA r=8, top 3": (8, range(3, 6), 4e-3),
    "LoRA r=2, top layer": (2, range(5, 6), 1e-2),
    "head alone": (0, (), 1e-2),
}
"""Rank, layers and learning rate."""


@dataclass(frozen=True)
class Recipe:
    rank: int
    layers: tuple[int, ...]
    learning_rate: float
    epochs: float
    batch_size: int


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = python_docs.Sizes()
    arguments.add_argument("--train", type=int, nargs="+", default=[default.train], help="paragraphs per area")
    arguments.add_argument("--longest", type=int, nargs="+", default=[default.longest], help="characters")
    arguments.add_argument("--epochs", type=float, nargs="+", default=[TrainingSpec().epochs])
    arguments.add_argument("--batch-size", type=int, default=TrainingSpec().batch_size)
    arguments.add_argument("--learning-rate", type=float, help="of every adapter; by default each has its own")
    arguments.add_argument("--adapters", nargs="+", default=list(ADAPTERS), choices=list(ADAPTERS))
    given = arguments.parse_args()
    torch.set_num_threads(1)
    for train in given.train:
        for longest in given.longest:
            sizes = replace(default, train=train, longest=longest)
            splits, task = read(sizes)
            print(f"\n{train} paragraphs per area of at most {longest} characters; rows {task.rows}")
            print(f"  TF-IDF and logistic regression: {bag_of_words(splits):.3f} on validation")
            for epochs in given.epochs:
                for adapter in given.adapters:
                    rank, layers, rate = ADAPTERS[adapter]
                    recipe = Recipe(rank, tuple(layers), given.learning_rate or rate, epochs, given.batch_size)
                    measured = trained(recipe, splits, task)
                    print(f"  {epochs:g} epochs, {adapter:20s} {measured}", flush=True)


def read(sizes: python_docs.Sizes) -> tuple[dict[str, Split], TaskInfo]:
    tables = python_docs.tables(sizes)
    names = sorted(set(tables["train"].columns["label"]))
    splits = {
        name: Split(tuple(table.columns["text"]), None, tuple(names.index(one) for one in table.columns["label"]))
        for name, table in tables.items()
    }
    rows = {name: len(split) for name, split in splits.items()}
    wanted = ("accuracy", "f1", "matthews")
    return splits, TaskInfo(kind="classification", labels=tuple(names), metric="accuracy", metrics=wanted, rows=rows)


def bag_of_words(splits: dict[str, Split]) -> float:
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=20, max_iter=500)
    )
    model.fit(splits["train"].texts, splits["train"].labels)
    return float(model.score(splits["validation"].texts, splits["validation"].labels))


def trained(recipe: Recipe, splits: dict[str, Split], task: TaskInfo) -> str:
    """Train once and say what it took and reached."""
    base = load_base_model(ModelSpec(), task, seed=0)
    model = base.model
    torch.manual_seed(0)
    if recipe.rank:
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            target_modules=["query", "key", "value", "attention.output.dense"],
            layers_to_transform=list(recipe.layers),
        )
        model = get_peft_model(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier"))
    rows = {name: tokenised(split, base.tokenizer, MAX_TOKENS) for name, split in splits.items()}
    pad = Padding.of(base.tokenizer)
    batches = train_batches(rows["train"], recipe.batch_size, seed=0, pad=pad)
    steps = max(1, round(recipe.epochs * len(batches)))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = get_scheduler("linear", optimizer, round(0.06 * steps), steps)
    model.train()
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in plan(batches, steps, seed=0):
        model(**batch.inputs, labels=batch.labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    evaluated = time.process_time()
    found = {
        name: scored(model, task, evaluation_batches(rows[name], recipe.batch_size, pad))["accuracy"]
        for name in ("validation", "test")
    }
    evaluated = time.process_time() - evaluated
    padding = 1 - sum(batch.tokens for batch in batches) / sum(batch.inputs["input_ids"].numel() for batch in batches)
    tokens = sum(batch.tokens for batch in batches)
    scores = ", ".join(f"{name} {score:.3f}" for name, score in found.items())
    return (
        f"{steps} steps, {cpu / recipe.epochs:.1f} s/epoch of one thread ({wall / recipe.epochs:.1f} wall), "
        f"both evaluations {evaluated:.1f} s, {tokens} tokens/epoch, padding {padding:.1%}, {scores}"
    )


@torch.no_grad()
def scored(model: torch.nn.Module, task: TaskInfo, batches: list[Batch]) -> dict[str, float]:
    model.eval()
    logits = torch.cat([model(**batch.inputs).logits for batch in batches])
    return metrics(task, logits, torch.cat([batch.labels for batch in batches]))


if __name__ == "__main__":
    main()
