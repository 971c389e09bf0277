"""Predicted memory against the allocator of a GPU: trials of every method, policy and pruning, and plain scripts.

    PYTHONPATH=. python tests/bench/memory_cuda.py measure trials bert --out trials-bert.json     # where the GPU is
    PYTHONPATH=. python tests/bench/memory_cuda.py measure trials llama --out trials-llama.json
    PYTHONPATH=. python tests/bench/memory_cuda.py measure scripts --data peft-memory-measured.csv --out scripts.json
    PYTHONPATH=. python tests/bench/memory_cuda.py compare trials-bert.json … [--picture FILE.svg]   # anywhere

Random weights in the shapes of BERT-base (float32 with bfloat16 autocast, batches of 32 x 128 tokens) and Llama-3.2-3B
(bfloat16, 4 x 768). A trial is one of a search, by its evaluator. A script is transformers, `get_peft_model` and a loop
of two steps, a short batch and a long one, for every different configuration in the file. What is predicted needs no
GPU and is worked out by `compare`.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory_published import configuration
from memory_tracked import candidates, trained
from scatter import scatter

from autopeft.domain.devices import devices_of
from autopeft.domain.memory import Prediction
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.base_model import BaseModel, build_from_config
from autopeft.evaluate.data.load import load_data
from autopeft.evaluate.memory.course import earlier
from autopeft.evaluate.memory.external import external_timeline
from autopeft.evaluate.memory.forecast import open_forecast
from autopeft.evaluate.memory.predictor import prediction_of
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.pipeline import open_evaluator
from tests.unit.causal_models import word_tokenizer, write_lines
from tests.unit.evaluate_models import BAD, GOOD, NEUTRAL, config_of, save_model

STEPS = 4
LLAMA = {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
}
BERT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
}
SLOW = ("corda", "full", "full-layers", "mora")
"""Left out on the large shape: their trials copy or decompose whole matrices for longer than they train."""


@dataclass(frozen=True)
class Shape:
    """A model and its batches."""

    rows: int
    tokens: int
    causal: bool


SHAPES = {"bert": Shape(32, 128, causal=False), "llama": Shape(4, 768, causal=True)}


def llama(device: str) -> Any:
    """Llama-3.2-3B by its shapes, in bfloat16."""
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        return AutoModelForCausalLM.from_config(config_of("llama", **LLAMA), dtype=torch.bfloat16)


def spec_of(name: str, folder: Path, *, weights: bool) -> SearchSpec:
    """Of one shape, with files in `folder`; without `weights`, the configuration alone of the large one."""
    shape, draw = SHAPES[name], random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if shape.causal:
        word_tokenizer().save_pretrained(model)
        (llama("cuda") if weights else config_of("llama", **LLAMA)).save_pretrained(model)
    else:
        save_model(model, **BERT)
    data = {}
    for split, batches in (("train", STEPS), ("validation", 1), ("test", 1)):
        lines = []
        for number in range(batches * shape.rows):
            good = draw.random() < 0.5
            # The longest row fills its batch to the limit, the others are shorter.
            length = shape.tokens if number % shape.rows == 0 else draw.randint(shape.tokens // 4, shape.tokens - 8)
            words = draw.choices(NEUTRAL + (GOOD if good else BAD), k=length - 3)
            if shape.causal:
                lines.append({"prompt": " ".join(words[:-8]), "completion": " ".join(words[-8:])})
            else:
                lines.append({"text": " ".join(words), "label": "good" if good else "bad"})
        data[split] = str(write_lines(folder / f"{split}.jsonl", lines))
    return SearchSpec.model_validate(
        {
            "model": {"source": str(model), **({"dtype": "bfloat16"} if shape.causal else {})},
            "data": {**data, "max_tokens": shape.tokens},
            "training": {"steps": STEPS, "rungs": [1.0], "batch_size": shape.rows},
        }
    )


def measure_trials(name: str, only: list[str]) -> Iterator[dict[str, Any]]:
    """One record per trial."""
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of(name, Path(folder), weights=True)
        evaluator = open_evaluator(spec.model_dump(mode="json"), device="cuda")
        for title, candidate in candidates(evaluator._bench.layout).items():
            if (only and title not in only) or (name == "llama" and title in SLOW):
                continue
            began = time.perf_counter()
            outcome = trained(evaluator, candidate)
            found = outcome.measurements
            record = {"name": title, "seconds": round(time.perf_counter() - began, 2)}
            if found is None or found.train_peak is None:
                record["failure"] = str(outcome.failure)
            else:
                record |= {"live": found.train_peak.live_bytes, "reserved": found.train_peak.reserved_bytes}
            yield record


def measure_scripts(file: Path, only: list[str]) -> Iterator[dict[str, Any]]:
    """One record per different configuration in the file."""
    seen = set()
    for row in csv.DictReader(file.open()):
        key = (row["peft_config_json"].replace('"task_type": "CAUSAL_LM"', ""), row["autocast_adapter_dtype"])
        if key in seen or (only and row["experiment"] not in only):
            continue
        seen.add(key)
        began = time.perf_counter()
        record = {"name": row["experiment"], "peft_type": row["peft_type"]}
        try:
            record |= script(row)
        except Exception as error:
            record["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        gc.collect()
        torch.cuda.empty_cache()
        yield {**record, "seconds": round(time.perf_counter() - began, 2)}


def script(row: dict[str, str]) -> dict[str, int]:
    """Peaks of the loop that `autopeft estimate --peft-config` speaks of."""
    from peft import get_peft_model

    shape, config = SHAPES["llama"], configuration(row).config
    model: Any = llama("cuda")
    if config is not None:
        model = get_peft_model(model, config, autocast_adapter_dtype=row["autocast_adapter_dtype"] == "True")
    model.cuda().train()
    trainable = [part for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, longest = (one.tokens for one in steps_of(shape))
    for tokens in (before, longest):
        torch.cuda.empty_cache()
        ids = torch.randint(4, 1000, (shape.rows, tokens), device="cuda")
        mask = torch.ones_like(ids)
        mask[-1, -3:] = 0
        optimizer.zero_grad()
        outputs = model(input_ids=ids, attention_mask=mask, labels=ids)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
    return {
        "live": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "trainable": sum(part.numel() for part in trainable),
    }


def steps_of(shape: Shape) -> tuple[Setup, Setup]:
    """The short step and the long one of a script."""
    longest = Setup(shape.rows, shape.tokens, caches=True, holds_outputs=True)
    return earlier(longest), longest


def bare(spec: SearchSpec) -> BaseModel:
    """The model of a configuration alone, which a search would not take."""
    model = build_from_config(spec.model, load_data(spec.data, spec.seed).task)
    model.eval().requires_grad_(False)
    tokenizer = word_tokenizer()
    return BaseModel(model, tokenizer, tokenizer.pad_token_id, spec.model.source, "", ())


def workspace() -> int:
    """Of cuBLAS on an H100."""
    return devices_of("h100")[0].workspace_bytes


def foretold(document: dict[str, Any], data: Path | None) -> Iterator[tuple[dict[str, Any], Prediction | str]]:
    """Every record with its prediction, or why there is none."""
    kind = document["kind"]
    if kind == "scripts":
        assert data is not None, "compare needs --data for scripts"
        rows = {row["experiment"]: row for row in csv.DictReader(data.open())}
        for record in document["records"]:
            row = rows[record["name"]]
            exact = row["autocast_adapter_dtype"] == "True"
            before, longest = (
                external_timeline(llama("meta"), configuration(row), one, adapters_in_float32=exact)
                for one in steps_of(SHAPES["llama"])
            )
            yield record, prediction_of(longest, workspace(), before)
        return
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of(kind, Path(folder), weights=False)
        forecast = open_forecast(spec, "cuda", model=bare(spec) if SHAPES[kind].causal else None)
        known = candidates(forecast.layout)
        for record in document["records"]:
            candidate = known[record["name"]]
            found = forecast.predict(candidate)
            if found is None:
                yield record, forecast.why_not(candidate)
                continue
            reserved = forecast.traced(candidate, workspace()).train_peak_reserved_bytes
            yield record, found.model_copy(update={"train_peak_reserved_bytes": reserved})


def compare(files: list[Path], data: Path | None, picture: Path | None) -> None:
    """Print every comparison, and the summaries."""
    points: list[tuple[float, float, str]] = []
    for file in files:
        document = json.loads(file.read_text())
        print(f"{file.stem} on {document['device']}, torch {document['torch']}")
        errors: dict[str, list[tuple[float, str]]] = {"allocated": [], "reserved": []}
        for record, found in foretold(document, data):
            if isinstance(found, str) or "failure" in record:
                print(f"{record['name']:44} {record.get('failure') or found}", flush=True)
                continue
            assert found.train_peak_reserved_bytes is not None
            live = (found.train_peak_bytes + workspace()) / record["live"] - 1
            reserved = found.train_peak_reserved_bytes / record["reserved"] - 1
            print(
                f"{record['name']:44} allocated {record['live'] / 2**30:7.3f} GiB {live:+.2%}, "
                f"reserved {record['reserved'] / 2**30:7.3f} GiB {reserved:+.2%}",
                flush=True,
            )
            errors["allocated"].append((live, record["name"]))
            errors["reserved"].append((reserved, record["name"]))
            points.append((record["live"] / 2**30, (found.train_peak_bytes + workspace()) / 2**30, record["name"]))
        for kind, ones in errors.items():
            sizes = sorted(abs(error) for error, _ in ones)
            print(
                f"  {kind}, {len(sizes)}: median {statistics.median(sizes):.2%}, "
                f"95th percentile {sizes[round(0.95 * (len(sizes) - 1))]:.2%}, worst {sizes[-1]:.2%}"
            )
            for error, name in sorted(ones, key=lambda one: -abs(one[0]))[:5]:
                print(f"    {error:+.2%} {name}")
    if picture:
        scatter(points, "allocated GiB", "predicted GiB", picture)


def main() -> None:
    """Measure where there is a GPU, compare anywhere."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("measure", "compare"))
    parser.add_argument("of", nargs="+", help="trials bert | trials llama | scripts; or files to compare")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.what == "compare":
        torch.set_num_threads(1)
        compare([Path(one) for one in asked.of], asked.data, asked.picture)
        return
    kind = asked.of[-1]
    records = []
    found = measure_scripts(asked.data, asked.only) if kind == "scripts" else measure_trials(kind, asked.only)
    for record in found:
        records.append(record)
        print(record, flush=True)
        document = {"kind": kind, "device": torch.cuda.get_device_name(), "torch": torch.__version__}
        asked.out.write_text(json.dumps({**document, "records": records}, indent=1))


if __name__ == "__main__":
    main()
