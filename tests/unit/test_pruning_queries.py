"""Query heads that share keys and values: as many go of each group, and their keys and values stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPTBigCodeConfig, LlamaConfig, Qwen3Config

import autopeft
from autopeft.domain.errors import UserError
from autopeft.domain.layout import Role
from autopeft.evaluate.artefact import save_adapter
from autopeft.evaluate.merging import merged
from autopeft.evaluate.methods import METHODS as METHODS_BY_NAME
from autopeft.evaluate.pruning import CRITERIA
from autopeft.evaluate.pruning.counts import kept_peft_parameters, lost_block_parameters
from autopeft.evaluate.pruning.decision import Scores, decide
from autopeft.evaluate.pruning.live import sides
from autopeft.evaluate.pruning.shape import BLOCKS, GROUPS, HeadShape
from autopeft.evaluate.whole import as_ordinary
from autopeft.spaces import bind
from autopeft.spaces.file import SearchSpaceFile
from tests.unit.model_state import assert_same, state_of
from tests.unit.pruning_models import HALVES, METHODS, Bed, masked, padded
from tests.unit.test_pruning_rules import layout_of, problems

WIDE = {
    "vocab_size": 22,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "initializer_range": 0.2,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "num_labels": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**WIDE),
    "qwen3": Qwen3Config(**WIDE),
    "bigcode": GPTBigCodeConfig(
        vocab_size=22,
        n_embd=24,
        n_layer=3,
        n_head=6,
        n_inner=24,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        num_labels=2,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
}
"""Two groups of three query heads; Qwen3 normalises each head, and BigCode has one group of six, in a fused matrix."""


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[kind]).eval().requires_grad_(False)


def bed_of(kind: str, methods: tuple[str, ...], **settings: Any) -> Bed:
    asked = {"heads": 1 / 3, "shared_heads": "queries", "modules": 0.0, "ranks": 0.0, **settings}
    bed = Bed("", methods, model=model_of(kind), **asked)
    bed.randomise()
    bed.train(4)
    return bed


@pytest.mark.parametrize("methods", [*((method,) for method in METHODS), ("lora", "parallel")], ids="+".join)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pruned_model_says_what_the_masked_one_says(kind: str, methods: tuple[str, ...]) -> None:
    bed = bed_of(kind, methods)
    bed.masks.remove()
    whole = bed.logits()
    bed.estimation.prune()
    decision, found = bed.inserted.pruned.decision, bed.logits()
    groups = bed.layout.kv_heads
    each = 6 // groups
    for layer, kept in zip(bed.layout.layers, decision.heads, strict=True):
        assert [sum(head // each == group for head in kept) for group in range(groups)] == [4 // groups] * groups
        key, output = layer.module(Role.KEY), layer.module(Role.ATTENTION_OUTPUT)
        assert sides(bed.model.get_submodule(output.path))[0] == 16
        if key is not None:
            assert sides(bed.model.get_submodule(key.path))[1] == 8, "keys stay"
        else:
            assert sides(bed.model.get_submodule(layer.module(Role.QKV).path))[1] == 16 + 2 * 4
    bed.untouched.restore()
    again = bed_of(kind, methods)
    again.masks.remove()
    with masked(again.model, again.layout, decision.heads, decision.units, within=True):
        torch.testing.assert_close(found, again.logits(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_counts_are_closed_forms_the_base_comes_back_and_a_winner_reloads(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    before = state_of(model)
    asked: dict[str, Any] = {"heads": 1 / 3, "shared_heads": "queries", "masks": "fold"}
    bed = Bed("", ("lora", "serial"), model=model, **asked)
    bed.randomise()
    bed.train(4)
    bed.estimation.prune()
    bed.train(1)
    decision, layout = bed.inserted.pruned.decision, bed.layout
    peft = kept_peft_parameters(bed.candidate.insertions, layout, decision)
    lost = lost_block_parameters(layout, decision)
    assert sum(part.numel() for part in bed.model.parameters()) == layout.parameters - lost + peft
    save_adapter(bed.inserted, tmp_path / "pruned")
    expected = bed.logits()
    bed.untouched.restore()
    assert_same(before, state_of(model))
    loaded = autopeft.load_adapter(model_of(kind), tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(loaded(**padded()).logits, expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_even_widths_are_an_ordinary_model(kind: str, tmp_path: Path) -> None:
    bed = bed_of(kind, ("lora",), ffn_scope="layer")
    bed.estimation.prune()
    before = bed.logits()
    as_ordinary(merged(bed.model), bed.layout, pruned=True).save_pretrained(tmp_path / "whole")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert (loaded.config.num_attention_heads, loaded.config.num_key_value_heads) == (4, 2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**padded()).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("criterion", ["light-peft", "random", "magnitude"])
def test_every_criterion_drops_as_many_of_each_group_and_by_the_scores_of_query_heads(criterion: str) -> None:
    bed = Bed("", ("lora",), criterion, model=model_of("llama"), heads=1 / 3, shared_heads="queries")
    if criterion == "magnitude":
        with torch.no_grad():
            for layer in bed.layout.layers:
                for role, along in ((Role.QUERY, 0), (Role.ATTENTION_OUTPUT, 1)):
                    weight = bed.model.get_submodule(layer.module(role).path).get_base_layer().weight
                    weight.narrow(along, 4, 4).mul_(0.01)  # query head 1, of group 0
                    weight.narrow(along, 20, 4).mul_(0.01)  # query head 5, of group 1
    elif criterion == "light-peft":
        with torch.no_grad():
            for mask in bed.masks.heads.values():
                mask.values[[1, 5]] = 0.1
    bed.estimation.prune()
    heads = bed.inserted.pruned.decision.heads
    assert all(sum(head < 3 for head in kept) == sum(head >= 3 for head in kept) == 2 for kept in heads)
    if criterion != "random":
        assert heads == ((0, 2, 3, 4),) * 3


def test_where_no_heads_share_keys_whole_heads_go() -> None:
    bed = Bed("bert", ("lora",), "random", shared_heads="queries")
    other = Bed("bert", ("lora",), "random")
    bed.estimation.prune()
    other.estimation.prune()
    assert bed.inserted.pruned.decision == other.inserted.pruned.decision


def test_the_lowest_of_each_group_goes() -> None:
    scores = Scores(heads=(torch.tensor([[3.0, 1.0, 2.0], [0.1, 0.3, 0.2]]).numpy(),))
    found = decide(scores, {**HALVES, "heads": 1 / 3})
    assert found.heads == ((0, 2, 4, 5),)
    assert found.within


def test_rows_of_query_heads() -> None:
    shape = HeadShape(groups=2, queries=2, head_dim=1, within=True)
    assert shape.query_rows([1, 2]) == [1, 2]
    assert shape.kv_rows([1, 2]) == [0, 1]
    assert shape.fused_rows([1, 2], BLOCKS) == [1, 2, 4, 5, 6, 7]
    assert shape.fused_rows([1, 2], GROUPS) == [1, 2, 3, 4, 6, 7]
    assert (shape.parts, shape.count([1, 2])) == (4, 1)


def test_a_space_may_leave_the_way_to_the_search() -> None:
    written = {
        "name": "mine",
        "summary": "s",
        "parameters": {"shared_heads": {"kind": "choice", "values": ["groups", "queries"]}},
        "candidate": {
            "insertions": [{"method": "lora"}],
            "pruning": {"criterion": "light-peft", "settings": {"heads": 0.5, "shared_heads": "$shared_heads"}},
            "learning_rate": 1e-3,
        },
    }
    bound = bind(SearchSpaceFile.model_validate(written), layout_of("llama"), METHODS_BY_NAME, {}, CRITERIA)
    for way in ("groups", "queries"):
        candidate = bound.resolve({"shared_heads": way})
        assert candidate is not None
        assert candidate.pruning is not None
        assert candidate.pruning.settings["shared_heads"] == way
    written["candidate"]["pruning"]["settings"]["heads"] = 0.8  # type: ignore[index]
    with pytest.raises(UserError, match=r"0\.8 leaves a layer none of its 2 groups .* \(and 1 more like it\)"):
        bind(SearchSpaceFile.model_validate(written), layout_of("llama"), METHODS_BY_NAME, {}, CRITERIA)


def test_what_leaves_a_group_nothing_is_refused_and_the_other_way_is_named() -> None:
    assert "heads: 0.75 leaves a group none of its 2 query heads" in problems(
        "llama", heads=0.75, shared_heads="queries"
    )
    assert problems("gemma", heads=0.5, shared_heads="queries") == ""
    assert "Lower the ratio of heads, or set shared_heads to queries" in problems("gemma", heads=0.5)
    assert "or set" not in problems("llama", heads=0.75)
    assert layout_of("gemma").kv_heads == 1
