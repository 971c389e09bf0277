"""Layers that run more than once in a forward pass: ALBERT shares them, and checkpointing computes them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AutoModelForSequenceClassification, Olmo2Config

import autopeft
from autopeft.domain.candidate import Candidate, Pruning
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.artefact import save_adapter
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.pruning.counts import kept_peft_parameters, lost_block_parameters
from autopeft.evaluate.pruning.criteria import ALL, DEFAULTS
from tests.unit.evaluate_models import WORDS, save_model
from tests.unit.evaluate_trials import opened, run, spec_of, task_of
from tests.unit.model_state import assert_same, state_of
from tests.unit.pruning_models import METHODS, Bed, insertion_of, masked, padded

PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")


def albert(layers: int = 6) -> Any:
    """Three groups of weights, each of which makes two of six layers."""
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=layers,
        num_hidden_groups=3,
        num_attention_heads=4,
        intermediate_size=24,
        initializer_range=0.2,
        **dict.fromkeys(PROBABILITIES, 0.0),
    )
    return AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("methods", [*((method,) for method in METHODS), ("lora", "parallel")], ids="+".join)
def test_a_pruned_albert_says_what_the_masked_one_says(methods: tuple[str, ...], tmp_path: Path) -> None:
    model = albert()
    before = state_of(model)
    bed = Bed("", methods, model=model, modules=0.0, ranks=0.0)
    bed.randomise()
    bed.train(4)
    whole = bed.logits()
    bed.estimation._masks.remove()
    copy = {name: values.clone() for name, values in model.state_dict().items() if "pruning_masks" not in name}
    bed.estimation.prune()
    decision, layout, found = bed.inserted.pruned.decision, bed.layout, bed.logits()
    lost, peft = (
        lost_block_parameters(layout, decision),
        kept_peft_parameters(bed.candidate.insertions, layout, decision),
    )
    assert sum(part.numel() for part in model.parameters()) == layout.parameters - lost + peft
    save_adapter(bed.inserted, tmp_path / "pruned")
    bed.untouched.restore()
    assert_same(before, state_of(model))
    again = Bed("", methods, model=model, modules=0.0, ranks=0.0)
    again.estimation._masks.remove()
    model.load_state_dict(copy)
    with masked(model, layout, decision.heads, decision.units):
        torch.testing.assert_close(found, again.logits(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-3), "something was pruned"
    assert torch.equal(autopeft.load_adapter(albert(), tmp_path / "pruned")(**padded()).logits, found)


def test_a_trial_prunes_an_albert(tmp_path: Path) -> None:
    albert().albert.save_pretrained(save_model(tmp_path / "albert"))
    evaluator = opened(spec_of(tmp_path, "albert", training={"steps": 8}))
    task = task_of(evaluator, tmp_path, dropout=0.0)
    pruning = Pruning(criterion="light-peft", settings={**DEFAULTS, "heads": 0.25, "modules": 0.5})
    task = task.model_copy(update={"candidate": task.candidate.model_copy(update={"pruning": pruning})})
    outcome, _ = run(evaluator, task)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert evaluator._bench.untouched.differences() == []
    evaluator.close()


def test_a_layer_counts_once_however_often_it_runs() -> None:
    """Seven layers of three groups: the first runs three times, the others twice."""
    once = {}
    for layers in (3, 7):
        model = albert(layers)
        _forget_what_came_before(model)
        bed = Bed("", ("lora",), model=model, steps=2)
        bed.randomise()
        bed.train(2, learning_rate=0.0)
        once[layers] = bed.estimation._importance.modules()
    for key, value in once[3].items():
        assert once[7][key] == pytest.approx(value, rel=1e-4)


def _forget_what_came_before(model: Any) -> None:
    """Every run of a layer starts from the same hidden states."""
    fixed = torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(1))

    def hook(module: Any, arguments: Any) -> Any:
        rows, length = arguments[0].shape[:2]
        return (fixed[:rows, :length], *arguments[1:])

    for group in model.albert.encoder.albert_layer_groups:
        group.register_forward_pre_hook(hook)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("methods", [("lora",), ("serial", "parallel")], ids="+".join)
def test_importance_is_the_same_where_layers_are_computed_again_in_the_backward_pass(
    kind: str, methods: tuple[str, ...]
) -> None:
    found = []
    for checkpointing in (False, True):
        bed = Bed(kind, methods, steps=2)
        bed.randomise()
        if checkpointing:
            bed.model.gradient_checkpointing_enable({"use_reentrant": False})
        bed.train(2)
        found.append((bed.estimation._importance.modules(), bed.estimation._importance.ranks()))
    (modules, ranks), (modules_again, ranks_again) = found
    assert modules_again == pytest.approx(modules, rel=1e-4)
    for key, values in ranks.items():
        torch.testing.assert_close(ranks_again[key], values, rtol=1e-3, atol=1e-9)


def test_heads_whose_queries_are_normalised_together_are_refused() -> None:
    config = Olmo2Config(
        vocab_size=22, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24, pad_token_id=0
    )
    layout = inspect_layout(AutoModelForSequenceClassification.from_config(config))
    pruning = Pruning(criterion="light-peft", settings=DEFAULTS)
    candidate = Candidate(insertions=(insertion_of("lora", layout),), learning_rate=1e-3, pruning=pruning)
    (problem,) = ALL[0].problems(candidate, layout)
    assert (problem.where, problem.found) == ("heads", "layer 0 normalises all heads together")
