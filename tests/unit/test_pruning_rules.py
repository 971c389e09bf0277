"""What cannot be pruned is refused when a space is bound, and what the published ratios leave of a large model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, RobertaConfig

from autopeft.domain.candidate import Candidate, Insertion, Pruning
from autopeft.domain.errors import UserError
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.pruning import CRITERIA, scores
from autopeft.evaluate.pruning.counts import kept_peft_parameters, lost_block_parameters
from autopeft.evaluate.pruning.criteria import DEFAULTS
from autopeft.evaluate.pruning.decision import decide
from autopeft.evaluate.pruning.shape import sites
from autopeft.spaces import bind
from autopeft.spaces.file import SearchSpaceFile
from tests.unit.evaluate_models import classifier_of
from tests.unit.pruning_models import insertion_of


@cache
def layout_of(kind: str) -> ModelLayout:
    return inspect_layout(classifier_of(kind))


def problems(kind: str = "bert", method: str = "lora", layout: ModelLayout | None = None, **settings: Any) -> str:
    layout = layout or layout_of(kind)
    insertion = (
        insertion_of(method, layout)
        if method in ("lora", "rslora", "serial", "parallel")
        else Insertion(method=method, layers=(0, 1, 2), modules=("attention.query",), settings={"rank": 4})
    )
    pruning = Pruning(criterion="light-peft", settings={**DEFAULTS, **settings})
    candidate = Candidate(insertions=(insertion,), learning_rate=1e-3, pruning=pruning)
    return "; ".join(str(one) for one in CRITERIA["light-peft"].problems(candidate, layout))


def test_the_criteria_share_their_settings_and_have_published_defaults() -> None:
    assert list(CRITERIA) == ["light-peft", "random", "magnitude"]
    for rules in CRITERIA.values():
        assert rules.facts.settings.keys() == rules.facts.defaults.keys()
        assert rules.facts.defaults["modules"] == 0.75
        assert rules.facts.defaults["penalty"] == 1e-4


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "opt", "llama", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("method", ["lora", "rslora", "serial", "parallel"])
def test_these_can_be_pruned(kind: str, method: str) -> None:
    assert problems(kind, method) == ""


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("bert", {"heads": 0.9}, "heads: 0.9 leaves a layer none of its 4 heads"),
        ("llama", {"heads": 0.75}, "heads: 0.75 leaves a layer none of its 2 groups of heads that share keys"),
        ("gemma", {"heads": 0.5}, "heads: 0.5 leaves a layer none of its 1 groups"),
        ("bert", {"ffn": 0.985, "ffn_scope": "layer"}, "ffn: 0.985 does not leave every layer one of its 24 units"),
        ("bert", {"ffn": 0.97}, "ffn: 0.97 does not leave every layer one"),
        ("bert", {"heads": 1.0}, "heads: 1.0 is not allowed; allowed: 0 to 0.99"),
        ("bert", {"ranks": -0.1}, "ranks: -0.1 is not allowed"),
        ("bert", {"estimation": 1.0}, "estimation: 1.0 is not allowed; allowed: 0.01 to 0.9"),
        ("bert", {"ffn_scope": "model"}, "ffn_scope: 'model' is not allowed; allowed: global, layer"),
        ("bert", {"warmth": 1}, "warmth: light-peft has no such setting"),
        ("deberta-v2", {}, "has 544 parameters beside its projections and norms"),
    ],
)
def test_what_leaves_nothing_or_cannot_be_cut_is_refused(kind: str, settings: dict[str, Any], said: str) -> None:
    assert said in problems(kind, **settings)


def test_every_mistake_is_told_at_once() -> None:
    found = problems("bert", "vera", heads=0.9, ffn=0.97)
    assert "heads: 0.9" in found
    assert "ffn: 0.97" in found
    assert "modules of vera cannot be cut with the layers that they act on; allowed: lora" in found


def test_ratios_of_nothing_ask_nothing_of_the_backbone() -> None:
    assert problems("deberta-v2", heads=0.0, ffn=0.0) == ""


def test_weights_in_a_few_bits_cannot_be_cut() -> None:
    few = layout_of("bert").model_copy(update={"quantised": True})
    assert "4 or 8 bits cannot be cut" in problems(layout=few)


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("heads", 0.95, r"0\.95 leaves a layer none of its 4 heads; allowed: below 0\.875"),
        ("ffn", 0.97, r"0\.97 does not leave every layer one of its 24 units; allowed: up to 0\.958"),
        ("estimation", 0.95, r"0\.95 is outside what 'estimation' of light-peft takes; allowed: 0\.01 to 0\.9"),
        ("estimation", 1.0, r"1\.0 is outside what 'estimation' of light-peft takes; allowed: 0\.01 to 0\.9"),
    ],
)
def test_what_leaves_nothing_is_refused_when_the_space_is_bound(name: str, bad: float, said: str) -> None:
    written = {
        "name": "mine",
        "summary": "s",
        "parameters": {name: {"kind": "choice", "values": [0.25, bad]}},
        "candidate": {
            "insertions": [{"method": "lora"}],
            "pruning": {"criterion": "light-peft", "settings": {name: f"${name}"}},
            "learning_rate": 1e-3,
        },
    }
    space = SearchSpaceFile.model_validate(written)
    with pytest.raises(UserError, match=said):
        bind(space, layout_of("bert"), METHODS, {}, CRITERIA)
    written["parameters"][name]["values"] = [0.25, 0.5]  # type: ignore[index]
    bound = bind(SearchSpaceFile.model_validate(written), layout_of("bert"), METHODS, {}, CRITERIA)
    candidate = bound.resolve({name: 0.5})
    assert candidate is not None
    assert candidate.pruning == Pruning(criterion="light-peft", settings={**DEFAULTS, name: 0.5})


# -- the published ratios


def test_published_ratios_take_a_third_of_the_blocks_and_leave_less_than_a_quarter_of_the_peft_parameters(
    record_property: Any,
) -> None:
    """RoBERTa-large, LoRA of rank 8 on six matrices: Gu et al.'s script. 16 heads lose 5, and not 5 1/3."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        )
    layout = inspect_layout(model)
    lora = Insertion(
        method="lora",
        layers=tuple(range(24)),
        modules=tuple(sorted(str(role) for role in layout.roles())),
        settings={"rank": 8, "alpha_ratio": 2.0, "dropout": 0.05},
    )
    before = METHODS["lora"].trainable(lora, layout)
    assert before == 3_538_944
    blocks = sum(layer.parameters for layer in layout.layers)
    assert blocks == 302_309_376
    for seed in range(20):
        drawn = scores.random(sites((lora,), layout), layout, seed, heads=True, units=True)
        decision = decide(drawn, DEFAULTS)
        lost, kept = lost_block_parameters(layout, decision), kept_peft_parameters((lora,), layout, decision)
        assert {len(heads) for heads in decision.heads or ()} == {11}
        assert sum(map(len, decision.units or ())) == 65_536
        assert len(decision.ranks) <= 36
        assert sum(map(len, decision.ranks.values())) == 144
        assert lost / blocks == pytest.approx(1 / 3, abs=0.01)
        assert kept / before < 0.25
        if seed == 0:
            said = (
                f"blocks {blocks} lose {lost} ({lost / blocks:.1%}), LoRA {before} keeps {kept} ({kept / before:.1%})"
            )
            record_property("published ratios", said)
            print(said)


def test_binding_a_space_does_not_import_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys; from autopeft.evaluate.pruning import CRITERIA; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
