"""A search over a real, tiny language model on real data, and what published data sets are read as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopeft.app.searching import search
from autopeft.domain.spec import DataSpec, SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.data.load import load_data
from autopeft.evaluate.pipeline import open_evaluator

SHARED = Path(__file__).parents[3] / "shared"
MODEL, DATA = SHARED / "models" / "stories260k", SHARED / "data"
SPACE = """
name: tiny
summary: LoRA on a tiny language model.
parameters:
  rank: {summary: Rank., kind: choice, values: [2, 8], ordered: true}
  layers: {summary: Layers., kind: layers, modes: top-k}
  learning_rate: {summary: Rate., kind: float, low: 5.0e-3, high: 1.0e-2, log: true}
candidate:
  insertions:
    - method: lora
      layers: $layers
      modules: [attention.query, attention.value]
      settings: {rank: $rank, alpha_ratio: 2.0, dropout: 0.0}
  learning_rate: $learning_rate
"""

KNOWN = {
    "gsm8k": ((7473, 1319), "validation_loss", 0, None),
    "commonsense_boolq": ((9427, 3270), "choice_accuracy", 2, 0.622),
    "commonsense_openbookqa": ((4957, 500), "choice_accuracy", 4, 0.276),
    "commonsense_arc_easy": ((2251, 2376), "choice_accuracy", 5, 0.266),
}


@pytest.mark.skipif(not DATA.is_dir(), reason="the optional real data sets are not beside the repository")
@pytest.mark.parametrize("name", KNOWN)
def test_a_published_set_needs_no_flags(name: str) -> None:
    (train, validation), metric, choices, majority = KNOWN[name]
    task = load_data(DataSpec(source=str(DATA / name)), seed=0).task
    assert task.rows == {"train": train, "validation": validation}
    assert (task.kind, task.metric, task.choices) == ("causal-lm", metric, choices)
    assert task.majority_share == (None if majority is None else pytest.approx(majority, abs=5e-4))


@pytest.mark.slow
@pytest.mark.skipif(not (MODEL.is_dir() and DATA.is_dir()), reason="the optional model and data are not there")
def test_a_search_over_a_real_language_model_lowers_its_loss(tmp_path: Path) -> None:
    files = {}
    for split, rows in (("train", 16), ("validation", 8)):
        lines = (DATA / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        short = [line for line in lines if len(line) < 350][:rows]
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(short) + "\n", encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(SPACE, encoding="utf-8")
    spec = SearchSpec.model_validate(
        {
            "model": str(MODEL),
            "data": {**files, "max_tokens": 128},
            "space": str(tmp_path / "tiny.yaml"),
            "training": {"steps": 8, "batch_size": 4, "rungs": [1.0]},
            "budget": "2",
            "sampler": "random",
            "resources": {"runner": "local"},
        }
    )
    untouched = open_evaluator(spec.model_dump(mode="json"))
    bench = untouched._bench
    before = bench.validation.score(bench.model, bench.device, bench.dtype).quality
    untouched.close()
    result = search(spec, tmp_path / "runs")
    results = result.results
    assert [one.trial.status for one in results.trials] == [TrialStatus.COMPLETE] * 2
    assert [objective.name for objective in results.objectives] == ["validation_loss", "train_peak_bytes"]
    losses = [one.values[0] for one in results.trials if one.values]
    assert max(losses) < before["validation_loss"] - 0.1
    best = results.front.pick("most-accurate")
    assert best.values is not None
    assert best.values[0] == min(losses)
    config = json.loads((result.exported["most-accurate"] / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["task_type"] == "CAUSAL_LM"
    assert "validation_loss" in (result.folder / "report.html").read_text(encoding="utf-8")
