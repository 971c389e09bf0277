"""What merges becomes a model that transformers alone loads, pruned with even widths too; the rest is refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.errors import UserError
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate import composition
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.merging import merged, unmergeable
from autopeft.evaluate.methods import METHODS, Calibration, OwnMethod, PeftMethod
from autopeft.evaluate.untouched import Untouched
from autopeft.evaluate.whole import as_ordinary, write_whole
from tests.unit.evaluate_models import TASK, batch, classifier_of
from tests.unit.evaluate_trials import opened, run, spec_of
from tests.unit.policy_runs import insertion_of
from tests.unit.pruning_models import Bed, padded


def trained(kind: str, methods: tuple[str, ...] = ("lora",), **settings: Any) -> Bed:
    bed = Bed(kind, methods, **{"ffn_scope": "layer", **settings})
    bed.randomise()
    bed.train(4)
    bed.estimation.prune()
    bed.train(1)
    return bed


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("mistral", {"ffn": 0.0}),
        ("llama", {"heads": 0.0, "masks": "fold"}),
        ("bert", {"heads": 0.0}),
        ("distilbert", {"heads": 0.0}),
        ("opt", {"heads": 0.0}),
        ("gpt2", {"heads": 0.0}),
    ],
)
def test_transformers_alone_loads_a_pruned_model(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    bed = trained(kind, **settings)
    before = bed.logits()
    as_ordinary(merged(bed.model), bed.layout, pruned=True).save_pretrained(tmp_path / "whole")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    parameters = sum(part.numel() for part in loaded.parameters())
    assert parameters < bed.layout.parameters
    with torch.no_grad():
        torch.testing.assert_close(loaded(**padded()).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("llama", {"ffn_scope": "global"}, "different numbers of feed-forward units .*allowed: points with .ffn_scope"),
        ("bert", {}, "'bert' cannot say 2 heads of 4 with 14 feed-forward units in layers 16 wide; allowed: points wh"),
        ("gpt2", {}, "the configuration of 'gpt2' cannot say 2 heads of 4"),
    ],
)
def test_widths_that_no_configuration_can_say_are_refused(kind: str, settings: dict[str, Any], said: str) -> None:
    bed = trained(kind, **settings)
    with pytest.raises(UserError, match=said):
        as_ordinary(merged(bed.model), bed.layout, pruned=True)


def test_every_method_that_merges_does_so_in_place_as_well() -> None:
    """Beside others, where no `PeftModel` is there to do it."""
    model, tried = classifier_of("llama").requires_grad_(False), []
    layout, untouched = inspect_layout(model), Untouched(model)
    draw, calibration = (
        torch.Generator().manual_seed(1),
        Calibration([batch(number) for number in range(4)], nullcontext),
    )
    for name, method in METHODS.items():
        insertion = insertion_of(layout, name, () if name == "full" else (0, 2))
        if unmergeable([name]) or method.facts.alone or method.problems(insertion, layout):
            continue
        if isinstance(method, PeftMethod) and method.changes_base(insertion):
            continue  # what it starts from is not in the way here
        assert isinstance(method, PeftMethod | OwnMethod)
        composed = composition.compose(untouched, [insertion], layout, steps=3, calibration=calibration)
        with torch.no_grad():
            for part in model.parameters():
                if part.requires_grad:
                    part += 0.05 * torch.randn(part.shape, generator=draw)
            model.eval()
            live = model(**batch()).logits
            found = merged(model, [one for one in composed.companions if one is not None])
            assert not any("base_layer" in key for key, _ in found.named_modules()), name
            torch.testing.assert_close(found(**batch()).logits, live, rtol=1e-3, atol=1e-4, msg=name)
        untouched.restore()
        tried.append(name)
    assert len(tried) > 25, tried


# -- from a trial's folder


def saved(tmp_path: Path, *insertions: str, **model: Any) -> tuple[SearchSpec, Candidate, Path]:
    """A mix that was trained in a trial."""
    spec = spec_of(tmp_path, "bert", training={"steps": 4})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update=model)})
    evaluator = opened(spec)
    layout = evaluator._bench.layout
    parts = [insertion_of(layout, name, (index,)) for index, name in enumerate(insertions)]
    candidate = Candidate(insertions=tuple(parts), learning_rate=1e-2)
    task = EvaluationTask(number=0, attempt=0, seed=3, candidate=candidate, artefact_dir=str(tmp_path / "adapter"))
    outcome, _ = run(evaluator, task)
    assert outcome.failure is None, outcome.failure
    evaluator.close()
    return spec, candidate, tmp_path / "adapter"


@pytest.mark.parametrize(
    "insertions",
    [
        ("lora",),
        (
            "lora",
            "ia3",
            "bitfit",
        ),
        ("increlora",),
        (),
    ],
    ids="+".join,
)
def test_a_trial_s_adapter_becomes_a_folder_with_model_and_tokenizer(
    tmp_path: Path, insertions: tuple[str, ...]
) -> None:
    spec, candidate, adapter = saved(tmp_path, *insertions)
    (tmp_path / "whole").mkdir()
    assert write_whole(spec, TASK, candidate, adapter, tmp_path / "whole") < 1e-4
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert loaded.config.id2label == {0: "bad", 1: "good"}


def test_on_a_half_precision_base_it_is_rounded_once_and_says_by_how_much(tmp_path: Path) -> None:
    spec, candidate, adapter = saved(tmp_path, "lora", dtype="bfloat16")
    (tmp_path / "whole").mkdir()
    difference = write_whole(spec, TASK, candidate, adapter, tmp_path / "whole")
    assert 0 < difference < 0.1
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert {part.dtype for part in loaded.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert loaded(**batch()).logits.dtype == torch.bfloat16, "no autocast is needed"


def test_a_merge_that_changes_what_the_model_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, candidate, adapter = saved(tmp_path, "lora")

    def broken(model: Any, companions: Any) -> Any:
        found = merged(model, companions)
        with torch.no_grad():
            found.classifier.weight += 0.1
        return found

    monkeypatch.setattr("autopeft.evaluate.whole.merged", broken)
    (tmp_path / "whole").mkdir()
    with pytest.raises(UserError, match="merged, its logits differ by"):
        write_whole(spec, TASK, candidate, adapter, tmp_path / "whole")
    assert not list((tmp_path / "whole").iterdir())


def test_everything_that_cannot_be_merged_is_told_at_once_before_anything_is_loaded(tmp_path: Path) -> None:
    layout = inspect_layout(classifier_of("bert"))
    parts: tuple[Insertion, ...] = (insertion_of(layout, "serial", (0,)), insertion_of(layout, "lora", (1,)))
    candidate = Candidate(insertions=parts, learning_rate=1e-3)
    spec = SearchSpec.model_validate(
        {"model": {"source": "nowhere", "load_in": "4bit"}, "data": {"train": "x.jsonl", "validation": "y.jsonl"}}
    )
    with pytest.raises(UserError) as caught:
        write_whole(spec, TASK, candidate, tmp_path, tmp_path)
    first, second = caught.value.problems
    assert "serial cannot be merged into the weights of the base" in first.found
    assert "lora" in first.allowed.split(", ")
    assert "serial" not in first.allowed.split(", ")
    assert "4bit" in second.found
    assert "without --whole" in first.next_step
