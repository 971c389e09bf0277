"""A pruned model is the model with those masks at zero; and the shared base comes back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    FalconConfig,
    GPTNeoXConfig,
    Qwen3Config,
    StableLmConfig,
)

import autopeft
from autopeft.domain.errors import UserError
from autopeft.domain.layout import Role
from autopeft.evaluate.artefact import RECORD, save_adapter
from autopeft.evaluate.pruning.counts import kept_peft_parameters, lost_block_parameters
from autopeft.evaluate.pruning.live import LoraSite
from autopeft.evaluate.pruning.shape import GROUPS, dropped
from autopeft.evaluate.pruning.wiring import Wiring
from tests.unit.model_state import assert_same, state_of
from tests.unit.pruning_models import KINDS, METHODS, MORE_KINDS, Bed, masked, padded, toy

WIDE = {
    "vocab_size": 22,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
CASES = [(kind, (method,)) for kind in KINDS for method in METHODS]
CASES += [(kind, ("lora", "serial", "parallel")) for kind in (*KINDS, *MORE_KINDS)]


def case_name(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("kind", "methods"), CASES, ids=case_name)
def test_a_pruned_model_says_what_the_masked_one_says(kind: str, methods: tuple[str, ...]) -> None:
    bed = Bed(kind, methods, modules=0.0, ranks=0.0)
    bed.randomise()
    bed.train(4)
    whole, names = bed.logits(), bed.inserted.composed.names
    bed.estimation._masks.remove()  # discarded, so that they take no part in what is compared
    plain = bed.logits()
    bed.estimation.prune()
    decision = bed.inserted.pruned.decision
    found = bed.logits()
    bed.untouched.restore()
    again = Bed(kind, methods, modules=0.0, ranks=0.0)
    again.randomise()
    again.train(4)
    again.estimation._masks.remove()
    assert torch.equal(again.logits(), plain), "the same training twice"
    with masked(again.model, again.layout, decision.heads, decision.units):
        expected = again.logits()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-3), "something was pruned"
    assert bed.inserted.composed.names == names, "nothing of the PEFT modules went"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPTNeoXConfig(**WIDE), Wiring(fused=GROUPS)),
        (
            FalconConfig(**WIDE, multi_query=False, new_decoder_architecture=False),
            Wiring(fused=GROUPS, per_group={"hidden_size": 8, "num_heads": 1, "split_size": 8, "num_kv_heads": 1}),
        ),
        (Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8), Wiring()),
        (StableLmConfig(**WIDE, num_key_value_heads=2), None),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_attention_that_counts_otherwise_is_found_out(config: Any, expected: Wiring | None) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    found = []
    for prune in (True, False):
        bed = Bed("", ("lora", "parallel"), "random", model=model, modules=0.0, ranks=0.0)
        assert expected is None or bed.wiring == expected
        bed.randomise()
        bed.masks.remove()
        if prune:
            bed.estimation.prune()
            decision = bed.inserted.pruned.decision
            found.append(bed.logits())
        else:
            with masked(model, bed.layout, decision.heads, decision.units):
                found.append(bed.logits())
        bed.untouched.restore()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_attention_with_a_bias_per_head_is_refused_and_not_guessed_at() -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=22, hidden_size=32, n_layer=3, n_head=4, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    with pytest.raises(
        UserError, match="no way was found to take heads out of the attention of the model type 'bloom'"
    ):
        Bed("", ("serial",), model=model)
    assert Bed("", ("lora",), model=model, heads=0.0).estimation.prune() > 0


@pytest.mark.parametrize(("kind", "methods"), CASES, ids=case_name)
def test_masks_of_one_change_no_bit(kind: str, methods: tuple[str, ...]) -> None:
    bed = Bed(kind, methods)
    bed.randomise()
    with_masks = bed.logits()
    assert sum(mask.values.numel() for mask in bed.masks.heads.values()) == 3 * bed.layout.heads
    bed.masks.remove()
    assert torch.equal(bed.logits(), with_masks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_dropped_modules_and_ranks_say_nothing_any_more_and_the_rest_says_the_same(kind: str, method: str) -> None:
    bed = Bed(kind, (method,), heads=0.0, ffn=0.0, modules=0.4, ranks=0.5)
    bed.randomise()
    bed.train(4)
    with torch.no_grad():
        copies = {key: (live.down.weight.clone(), live.up.weight.clone()) for key, live in bed.live.items()}
    bed.estimation.prune()
    kept = bed.inserted.pruned.decision.ranks
    found = bed.logits()
    survivors = {site.path for site in bed.sites if site.key in kept}
    assert set(bed.inserted.module_names) == survivors
    assert len(survivors) <= len(bed.sites) - dropped(0.4, len(bed.sites))
    scales = {key: live.scale for key, live in bed.live.items() if key in kept}
    again = Bed(kind, (method,), heads=0.0, ffn=0.0, modules=0.4, ranks=0.5)
    again.randomise()
    again.train(4)
    with torch.no_grad():
        for key, live in again.live.items():
            assert torch.equal(live.down.weight, copies[key][0])
            gone = [rank for rank in range(live.site.ranks) if rank not in kept.get(key, ())]
            live.up.weight[:, gone] = 0.0
            if key not in kept and live.up.bias is not None:
                live.up.bias.zero_()
    torch.testing.assert_close(found, again.logits(), rtol=1e-4, atol=1e-5)
    assert scales == {key: live.scale for key, live in again.live.items() if key in kept}, "of the original rank"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_is_left_with_no_rank_disappears_from_the_model(kind: str, method: str) -> None:
    model = toy(kind)
    before, names = state_of(model), [name for name, _ in model.named_parameters()]
    bed = Bed(kind, (method,), heads=0.0, ffn=0.0, modules=0.0, ranks=0.5, model=model)
    bed.randomise()
    victim = bed.sites[0]
    with torch.no_grad():
        for part in (bed.live[victim.key].down, bed.live[victim.key].up):
            for parameter in part.parameters():
                parameter.zero_()
    bed.train(4, learning_rate=0.0)
    with_all = bed.logits()
    bed.estimation.prune()
    kept = bed.inserted.pruned.decision.ranks
    assert victim.key not in kept
    assert {site.path for site in bed.sites if site.key in kept} == set(bed.inserted.module_names)
    assert type(bed.model.get_submodule(victim.path)) is before["types"][victim.path]
    assert not torch.equal(bed.logits(), with_all), "others lost ranks"
    # Nothing of the module is left, neither parameters nor hooks: without the others the model is the base alone.
    for key in list(kept):
        bed.live[key].remove()
    assert [name for name, _ in model.named_parameters()] == names
    assert state_of(model)["hooks"] == before["hooks"]


@pytest.mark.parametrize("methods", [*((method,) for method in METHODS), ("lora", "parallel")], ids=case_name)
@pytest.mark.parametrize("kind", KINDS)
def test_ratios_of_nothing_change_nothing(kind: str, methods: tuple[str, ...]) -> None:
    bed = Bed(kind, methods, heads=0.0, ffn=0.0, modules=0.0, ranks=0.0)
    bed.randomise()
    before, parameters = bed.logits(), sum(part.numel() for part in bed.model.parameters())
    assert bed.estimation.prune() == 0
    assert torch.equal(bed.logits(), before)
    assert sum(part.numel() for part in bed.model.parameters()) == parameters
    assert len(bed.inserted.pruned.decision.ranks) == len(bed.sites)


@pytest.mark.parametrize(
    ("when", "methods"),
    [
        *((when, ("lora", "serial", "parallel")) for when in ("estimating", "pruned", "trained")),
        *(("trained", (method,)) for method in METHODS),
    ],
    ids=case_name,
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_shared_base_is_bit_for_bit_what_it_was(kind: str, when: str, methods: tuple[str, ...]) -> None:
    model = toy(kind)
    before = state_of(model)
    bed = Bed(kind, methods, masks="fold", model=model)
    bed.train(3)
    if when != "estimating":
        copied = bed.estimation.prune()
        assert copied > 0
    if when == "trained":
        bed.train(2)
    bed.untouched.restore()
    assert bed.untouched.differences() == []
    assert_same(before, state_of(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("methods", "masks"),
    [
        (("lora",), "discard"),
        (("lora",), "fold"),
        (("serial",), "discard"),
        (("parallel",), "discard"),
        (("rslora", "parallel"), "fold"),
    ],
    ids=case_name,
)
def test_a_pruned_winner_says_the_same_on_a_fresh_model(
    kind: str, methods: tuple[str, ...], masks: str, tmp_path: Path
) -> None:
    bed = Bed(kind, methods, masks=masks)
    bed.randomise()
    bed.train(4)
    bed.estimation.prune()
    bed.train(2)
    widths = {len(kept) for kept in bed.inserted.pruned.decision.units}
    assert len(widths) > 1, "uneven widths are what has to be saved"
    save_adapter(bed.inserted, tmp_path / "pruned")
    assert (tmp_path / "pruned" / RECORD).is_file()
    loaded = autopeft.load_adapter(toy(kind), tmp_path / "pruned")
    for seed in range(3):
        assert torch.equal(loaded(**padded(seed)).logits, bed.logits(seed))
    assert not any(part.requires_grad for part in loaded.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_folded_masks_say_what_the_live_ones_said(kind: str) -> None:
    bed = Bed(kind, ("lora",), modules=0.0, ranks=0.0, masks="fold")
    bed.randomise()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for mask in (*bed.masks.heads.values(), *bed.masks.units.values()):
            mask.values.copy_(torch.rand(mask.values.shape, generator=draw) - 0.3)
    masks = {name: values.clone() for name, values in bed.masks_by_path().items()}
    bed.estimation.prune()
    decision, found = bed.inserted.pruned.decision, bed.logits()
    again = Bed(kind, ("lora",))
    again.masks.remove()
    again.randomise()
    with masked(again.model, again.layout, decision.heads, decision.units, masks):
        torch.testing.assert_close(found, again.logits(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("methods", [("lora",), ("serial", "parallel")], ids=case_name)
@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_parameters_after_pruning_are_the_closed_form(kind: str, methods: tuple[str, ...]) -> None:
    bed = Bed(kind, methods)
    bed.train(4)
    copied = bed.estimation.prune()
    decision, layout = bed.inserted.pruned.decision, bed.layout
    peft = kept_peft_parameters(bed.candidate.insertions, layout, decision)
    lost = lost_block_parameters(layout, decision)
    assert lost > layout.layers[0].parameters
    assert sum(part.numel() for part in bed.inserted.trainable()) == peft + layout.head_parameters
    assert sum(part.numel() for part in bed.model.parameters()) == layout.parameters - lost + peft
    cut = [module for layer in layout.layers for module in layer.modules]
    biases = [one for one in cut if one.bias and one.role not in (Role.ATTENTION_OUTPUT, Role.FFN_OUT)]
    whole = sum(one.in_features * one.out_features for one in cut) + sum(one.out_features for one in biases)
    assert copied == 4 * whole, "every weight that was cut, in float32, before it was"
    for live in bed.live.values():
        if isinstance(live, LoraSite) and live.site.key in decision.ranks:
            assert live.layer.r["i0"] == len(decision.ranks[live.site.key])
