"""A language model is searched over like a classifier: losses fall, exams agree, the untouched model comes back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from autopeft.domain.errors import UserError
from autopeft.domain.layout import TaskName
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Outcome, TrialStatus
from autopeft.evaluate.inspection import inspect_run
from autopeft.evaluate.pipeline import TorchEvaluator
from tests.unit.causal_models import TEMPLATE, lora_of, save_language_model, write_lines, write_opinions
from tests.unit.evaluate_models import save_model
from tests.unit.evaluate_trials import opened, run

STEPS = 40
CHAT = [
    {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "very " + word}]}
    for word in ("film", "scene", "story", "film")
]


def spec_of(folder: Path, **changes: Any) -> SearchSpec:
    model = changes.pop("model", None) or {"source": str(save_language_model(folder / "model"))}
    data = {**(changes.pop("files", None) or write_opinions(folder)), "max_new_tokens": 4, **changes.pop("data", {})}
    training = {"steps": STEPS, "batch_size": 8, "rungs": (0.5, 1.0)}
    return SearchSpec.model_validate({"model": model, "data": data, "training": training, "seed": 3, **changes})


def trial(evaluator: TorchEvaluator, folder: Path, number: int = 0) -> tuple[Outcome, EvaluationTask]:
    candidate = lora_of(evaluator._bench.layout)
    task = EvaluationTask(number=number, attempt=0, seed=5, candidate=candidate, artefact_dir=str(folder / str(number)))
    return run(evaluator, task)[0], task


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchEvaluator, Outcome, EvaluationTask, dict[str, float]]:
    folder = tmp_path_factory.mktemp("causal")
    evaluator = opened(spec_of(folder, data={"metric": "exact_match"}))
    bench = evaluator._bench
    before = bench.validation.score(bench.model, bench.device, bench.dtype).quality
    outcome, task = trial(evaluator, folder)
    return evaluator, outcome, task, before


def test_training_lowers_the_loss_of_the_untouched_model(done: Any) -> None:
    _, outcome, _, before = done
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    quality = outcome.measurements.quality
    assert set(quality) == {"choice_accuracy", "exact_match", "validation_loss", "perplexity", "token_accuracy"}
    assert quality["validation_loss"] < 0.5 * before["validation_loss"]
    assert quality["choice_accuracy"] > 0.8
    assert quality["exact_match"] > before["exact_match"] + 0.3
    assert quality["perplexity"] == pytest.approx(math.exp(quality["validation_loss"]))


def test_a_trial_of_a_language_model_measures_what_every_trial_does(done: Any) -> None:
    evaluator, outcome, _, _ = done
    found, layout = outcome.measurements, evaluator._bench.layout
    assert layout.task is TaskName.CAUSAL_LM
    assert (layout.head_paths, found.head_parameters) == ((), 0)
    modules = [module for layer in layout.layers for module in layer.modules]
    assert found.trainable_parameters == sum(4 * (module.in_features + module.out_features) for module in modules)
    assert found.train_peak.live_bytes > layout.weights_bytes
    assert found.infer_peak.live_bytes > layout.weights_bytes
    assert found.latency_s > 0
    batches = {batch.row_ids: batch.tokens for batch in evaluator._bench.train}
    assert found.train_tokens == sum(batches.values()) * STEPS // len(batches)
    assert evaluator._bench.untouched.differences() == []
    assert not outcome.recycle_worker


def test_the_saved_adapter_says_the_same_in_plain_peft(done: Any) -> None:
    evaluator, outcome, task, _ = done
    bench = evaluator._bench
    plain = AutoModelForCausalLM.from_pretrained(bench.spec.model.source)
    model = PeftModel.from_pretrained(plain, task.artefact_dir)
    found = bench.validation.score(model, bench.device, bench.dtype)
    assert found.quality == pytest.approx(outcome.measurements.quality, rel=1e-4)


def test_test_answers_are_written_beside_the_adapter(done: Any) -> None:
    evaluator, outcome, task, _ = done
    quality = evaluator.score_test(Path(task.artefact_dir))
    assert set(quality) == set(outcome.measurements.quality)
    record = json.loads((Path(task.artefact_dir) / "test_predictions.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in Path(evaluator._bench.spec.data.test).read_text().splitlines()]
    right = sum(said == row["completion"] for said, row in zip(record["predictions"], rows, strict=True))
    assert right / len(rows) == pytest.approx(quality["exact_match"])
    assert record["rows"] == list(range(len(rows)))


def test_chats_are_trained_by_the_tokenizer_s_template(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "chats.jsonl", CHAT))
    model = {"source": str(save_language_model(tmp_path / "model", template=TEMPLATE))}
    spec = spec_of(tmp_path, model=model, files={"train": path, "validation": path})
    assert inspect_run(spec).task.chat
    evaluator = opened(spec)
    outcome, _ = trial(evaluator, tmp_path)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert outcome.measurements.quality["token_accuracy"] > 0.8


def test_chats_are_refused_before_the_search_where_there_is_no_template(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "chats.jsonl", CHAT))
    with pytest.raises(UserError, match="no chat template"):
        inspect_run(spec_of(tmp_path, files={"train": path, "validation": path}))


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    picky = "{% for m in messages %}{% if m.content == 'story' %}{{ raise_exception('no stories') }}{% endif %}"
    template = picky + TEMPLATE.split("{% for m in messages %}", 1)[1]
    path = str(write_lines(tmp_path / "chats.jsonl", CHAT))
    model = {"source": str(save_language_model(tmp_path / "model", template=template))}
    with pytest.raises(UserError) as caught:
        inspect_run(spec_of(tmp_path, model=model, files={"train": path, "validation": path}))
    first = caught.value.problems[0]
    assert (first.where, first.found) == ("train row 3", "its messages cannot be rendered: no stories")


def test_what_is_cut_is_said_before_the_search(tmp_path: Path) -> None:
    notices = " ".join(inspect_run(spec_of(tmp_path, data={"max_tokens": 7})).notices)
    assert "train prompts are cut at the beginning, to 7 tokens a row" in notices
    assert "completions are cut" not in notices
    notices = " ".join(inspect_run(spec_of(tmp_path, data={"max_tokens": 4})).notices)
    assert "24 of 24 validation completions are cut at the end" in notices


def test_an_answer_must_leave_room_for_the_prompt(tmp_path: Path) -> None:
    data = {"metric": "exact_match", "max_new_tokens": 64}
    with pytest.raises(UserError, match="leave no room for a prompt"):
        inspect_run(spec_of(tmp_path, data=data))


@pytest.mark.parametrize(
    ("kind", "found"), [("bert", "is an encoder \\('bert'\\)"), ("distilbert", "no language-model head")]
)
def test_a_model_that_cannot_write_is_refused(tmp_path: Path, kind: str, found: str) -> None:
    with pytest.raises(UserError, match=found):
        inspect_run(spec_of(tmp_path, model={"source": str(save_model(tmp_path / kind, kind))}))


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    # A random head that stays frozen would make noise of all that is said.
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        inspect_run(spec_of(tmp_path, model={"source": str(save_model(tmp_path / "llama", "llama"))}))


def test_a_tied_head_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "tied", tie_word_embeddings=True)
    evaluator = opened(spec_of(tmp_path, model={"source": str(folder)}))
    model = evaluator._bench.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert evaluator._bench.layout.head_paths == ()


def test_half_precision_leaves_the_language_model_s_head_as_it_is(tmp_path: Path) -> None:
    model = {"source": str(save_language_model(tmp_path / "model")), "dtype": "bfloat16"}
    evaluator = opened(spec_of(tmp_path, model=model))
    assert evaluator._bench.model.lm_head.weight.dtype == torch.bfloat16
    outcome, _ = trial(evaluator, tmp_path)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there, so nothing is refused")
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_quantised_weights_are_refused_without_a_gpu(tmp_path: Path, load_in: str) -> None:
    model = {"source": str(save_language_model(tmp_path / "model")), "load_in": load_in}
    for step in (inspect_run, opened):
        with pytest.raises(UserError) as caught:
            step(spec_of(tmp_path, model=model))
        problem = next(one for one in caught.value.problems if "GPU" in one.found)
        assert (problem.where, problem.found) == ("model.load_in", f"{load_in} needs a GPU, and torch sees none here")
