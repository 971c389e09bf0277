"""What is dropped first: masks and importance as the paper has them, exact counts, and controls that drop as much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autopeft.domain.layout import Role
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.pruning import scores
from autopeft.evaluate.pruning.decision import Decision, Scores, decide
from autopeft.evaluate.pruning.importance_reference import module_importance, rank_importance
from autopeft.evaluate.pruning.masks import NAME
from autopeft.evaluate.pruning.shape import BLOCKS, GROUPS, HeadShape, dropped, head_shape
from tests.unit.pruning_models import HALVES, KINDS, Bed, padded, toy


def counts(decision: Decision) -> tuple[Any, ...]:
    heads = decision.heads and [len(kept) for kept in decision.heads]
    return heads, decision.units and sum(map(len, decision.units)), sum(map(len, decision.ranks.values()))


# -- masks


def test_the_penalty_is_lambda_times_the_l1_norm_and_no_part_of_the_reported_loss() -> None:
    free, bound = Bed("bert", penalty=0.0), Bed("bert", penalty=0.5)
    losses = []
    for bed in (free, bound):
        with torch.no_grad():
            next(iter(bed.masks.heads.values())).values[0] = -1.0
        loss = bed.model(**padded()).loss
        losses.append(loss.item())
        loss.backward()
    assert losses[0] == losses[1]
    for part in ("heads", "units"):
        for layer, mask in getattr(bound.masks, part).items():
            without = getattr(free.masks, part)[layer].values.grad
            copied = mask.values.detach().clone().requires_grad_(True)
            explicit = torch.autograd.grad(0.5 * copied.abs().sum(), copied)[0]
            torch.testing.assert_close(mask.values.grad, without + explicit)
            assert without.abs().sum() > 0


def test_the_penalty_is_shared_out_over_the_passes_of_a_step() -> None:
    one, two = Bed("bert", penalty=0.5), Bed("bert", penalty=0.5, passes=2)
    one.model(**padded()).loss.backward()
    for _ in range(2):
        (two.model(**padded()).loss / 2).backward()
    for layer, mask in one.masks.heads.items():
        torch.testing.assert_close(mask.values.grad, two.masks.heads[layer].values.grad)


def test_masks_are_trained_with_the_rest_and_only_where_something_is_dropped() -> None:
    bed = Bed("bert", heads=0.0)
    assert not bed.masks.heads
    assert {name.split(".")[1] for name, _ in bed.model.named_parameters() if name.startswith(NAME)} == {
        "units_0",
        "units_1",
        "units_2",
    }
    trained = {id(part) for part in bed.inserted.trainable()}
    assert all(id(mask.values) in trained for mask in bed.masks.units.values())
    bed.train(1)
    assert all(bool((mask.values != 1).any()) for mask in bed.masks.units.values())


def test_weight_decay_leaves_masks_alone() -> None:
    bed = Bed("bert", penalty=0.0)
    decayed = bed.inserted.optimizer(0.1, 0.5)
    for part in bed.inserted.trainable():
        part.grad = torch.zeros_like(part)
    before = {key: live.down.weight.clone() for key, live in bed.live.items()}
    decayed.step()
    for mask in (*bed.masks.heads.values(), *bed.masks.units.values()):
        assert bool((mask.values == 1).all())
    for key, live in bed.live.items():
        torch.testing.assert_close(live.down.weight, 0.95 * before[key])


# -- importance


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("methods", [("lora",), ("serial",), ("lora", "parallel")])
@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_importance_is_that_of_the_slow_reference(kind: str, methods: tuple[str, ...], passes: int) -> None:
    steps = 4
    bed = Bed(kind, methods, steps=steps, passes=passes, modules=0.0, ranks=0.0)
    bed.randomise()
    optimizer = bed.inserted.optimizer(1e-2, 0.0)
    seen: dict[str, dict[str, list[Any]]] = {key: {"delta": [], "base": [], "down": [], "up": []} for key in bed.live}
    tokens = []
    bed.model.train()
    for step in range(steps):
        for one in range(passes):
            inputs = padded(step * passes + one)
            if step >= steps // 2:
                tokens.append(inputs["attention_mask"])
                _note_outputs(bed, seen, inputs)
            (bed.model(**inputs).loss / passes).backward()
        if step >= steps // 2:
            for key, live in bed.live.items():
                for name, matrix in (("down", live.down.weight), ("up", live.up.weight)):
                    seen[key][name].append((matrix.detach().clone(), matrix.grad.clone()))
        with torch.no_grad():
            bed.logits()  # a validation in between leaves no trace
        bed.model.train()
        optimizer.step()
        optimizer.zero_grad()
    importance = bed.estimation._importance
    assert importance is not None
    modules, ranks = importance.modules(), importance.ranks()
    for key, found in seen.items():
        assert modules[key] == pytest.approx(module_importance(found["delta"], found["base"], tokens), rel=1e-4)
        expected = torch.tensor(rank_importance(found["down"], found["up"]), dtype=torch.float64)
        torch.testing.assert_close(ranks[key], expected, rtol=1e-3, atol=1e-9)


def _note_outputs(bed: Bed, seen: dict[str, dict[str, list[Any]]], inputs: dict[str, torch.Tensor]) -> None:
    """What each module adds and to what, from the inputs of the modules and by matrix products alone."""
    taken: dict[str, torch.Tensor] = {}
    handles = []
    for layer in bed.layout.layers:
        for module in layer.modules:

            def keep(part: Any, arguments: Any, path: str = module.path) -> None:
                taken[path] = arguments[0].detach()

            handles.append(bed.model.get_submodule(module.path).register_forward_pre_hook(keep))
    with torch.no_grad():
        bed.model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
    for handle in handles:
        handle.remove()
    shape = inputs["attention_mask"].shape
    with torch.no_grad():
        for key, live in bed.live.items():
            module = bed.model.get_submodule(live.site.path)
            plain, x = getattr(module, "base_layer", module), taken[live.site.path]
            frozen = x @ plain.weight.T + plain.bias
            if live.site.method == "lora":
                base, delta = frozen, 2.0 * x @ live.down.weight.T @ live.up.weight.T
            else:
                base = frozen
                lora = bed.live.get(f"0:{live.site.path}")
                if lora is not None and lora is not live:
                    base = base + 2.0 * x @ lora.down.weight.T @ lora.up.weight.T
                entrance = {"attention.output": "attention.query", "ffn.out": "ffn.in"}[live.site.role]
                layer = bed.layout.layers[live.site.layer]
                given = base if live.site.method == "serial" else taken[layer.module(entrance).path]
                inner = torch.relu(given @ live.down.weight.T + live.down.bias)
                delta = 2.0 * (inner @ live.up.weight.T + live.up.bias)
            seen[key]["base"].append(base.reshape(*shape, -1))
            seen[key]["delta"].append(delta.reshape(*shape, -1))


def test_what_is_not_a_number_counts_as_nothing() -> None:
    bed = Bed("bert", ("lora",), steps=2)
    bed.randomise()
    with torch.no_grad():
        plain = bed.live[bed.sites[0].key].layer.get_base_layer()
        plain.weight.zero_()
        plain.bias.zero_()
    bed.train(2)
    found = bed.estimation._importance.modules()
    assert found[bed.sites[0].key] == 0.0
    assert all(value > 0 for key, value in found.items() if key != bed.sites[0].key)


# -- what is planted is found


@pytest.mark.parametrize("kind", KINDS)
def test_planted_dead_heads_and_units_go_first(kind: str) -> None:
    model = toy(kind)
    dead_heads, dead_units = [], []
    layout = inspect_layout(model)
    with torch.no_grad():
        for layer in layout.layers:
            shape = head_shape(layer, layout)
            group = layer.index % shape.groups
            units = [(5 * layer.index + 7 * place) % 24 for place in range(4 + layer.index)]
            output, out = layer.module(Role.ATTENTION_OUTPUT), layer.module(Role.FFN_OUT)
            _silence(model.get_submodule(output.path), output.transposed, shape.query_rows([group]))
            _silence(model.get_submodule(out.path), out.transposed, units)
            dead_heads.append(group)
            dead_units.append(set(units))
    groups, every = layout.kv_heads, 3 * layout.layers[0].module(Role.FFN_OUT).in_features
    ratio = sum(map(len, dead_units)) / every
    # A task that the model does already, so that whatever is alive is needed as it is.
    model.config.problem_type = "regression"
    batches = [padded(seed) for seed in range(6)]
    for one in batches:
        with torch.no_grad():
            one["labels"] = model(**{name: one[name] for name in ("input_ids", "attention_mask")}).logits
    bed = Bed(kind, ("serial",), model=model, heads=1 / groups, ffn=ratio, modules=0.0, ranks=0.0)
    optimizer = bed.inserted.optimizer(1e-2, 0.0)
    for step in range(36):
        bed.model(**batches[step % len(batches)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    bed.estimation.prune()
    decision = bed.inserted.pruned.decision
    assert [set(range(groups)) - set(kept) for kept in decision.heads] == [{group} for group in dead_heads]
    width = every // 3
    assert [set(range(width)) - set(kept) for kept in decision.units] == dead_units


def _silence(module: Any, transposed: bool, inputs: list[int]) -> None:
    if transposed:
        module.weight[inputs] = 0.0
    else:
        module.weight[:, inputs] = 0.0


# -- controls


@pytest.mark.parametrize("kind", KINDS)
def test_controls_drop_exactly_as_much_and_something_else(kind: str) -> None:
    found = {}
    for criterion in ("light-peft", "random", "magnitude"):
        bed = Bed(kind, ("lora", "serial"), criterion)
        bed.train(4)
        bed.estimation.prune()
        found[criterion] = bed.inserted.pruned.decision
    assert len({repr(counts(one)) for one in found.values()}) == 1
    assert len({repr(one) for one in found.values()}) == 3


def test_random_pruning_is_a_function_of_the_seed_alone() -> None:
    bed = Bed("bert", ("lora",))
    drawn = [scores.random(bed.sites, bed.layout, seed, heads=True, units=True) for seed in (3, 3, 4)]
    decisions = [decide(one, HALVES) for one in drawn]
    assert decisions[0] == decisions[1] != decisions[2]


@pytest.mark.parametrize("kind", KINDS)
def test_magnitude_is_the_norm_of_the_weights(kind: str) -> None:
    bed = Bed(kind, ("lora",), "magnitude")
    bed.randomise()
    found = scores.magnitude(bed.model, bed.live, bed.layout, bed.wiring, heads=True, units=True)
    weights = {
        module.role: (part.weight.T if module.transposed else part.weight).detach()
        for module in bed.layout.layers[1].modules
        for part in [bed.model.get_submodule(module.path).get_base_layer()]
    }
    shape = head_shape(bed.layout.layers[1], bed.layout)
    queries = slice(shape.queries * shape.head_dim, 2 * shape.queries * shape.head_dim)
    keys = slice(shape.head_dim, 2 * shape.head_dim)
    if Role.QKV in weights:
        parts = list(weights[Role.QKV].chunk(3))
    else:
        parts = [weights[Role.QUERY], weights[Role.KEY], weights[Role.VALUE]]
    total = parts[0][queries].square().sum() + sum(part[keys].square().sum() for part in parts[1:])
    total = total + weights[Role.ATTENTION_OUTPUT][:, queries].square().sum()
    assert found.heads[1][1] == pytest.approx(float(total.sqrt()), rel=1e-5)
    into = [weights[role] for role in (Role.FFN_IN, Role.FFN_GATE) if role in weights]
    unit = sum(part[5].square().sum() for part in into) + weights[Role.FFN_OUT][:, 5].square().sum()
    assert found.units[1][5] == pytest.approx(float(unit.sqrt()), rel=1e-5)
    live = bed.live[bed.sites[2].key]
    product = live.scale * live.up.weight @ live.down.weight
    assert found.modules[bed.sites[2].key] == pytest.approx(product.norm().item(), rel=1e-5)
    one = live.scale * torch.outer(live.up.weight[:, 1], live.down.weight[1])
    assert found.ranks[bed.sites[2].key][1] == pytest.approx(one.norm().item(), rel=1e-5)


# -- decisions


def test_counts_are_exact_and_halves_round_up() -> None:
    assert [dropped(ratio, 16) for ratio in (0.0, 1 / 3, 0.5, 0.03125, 0.99)] == [0, 5, 8, 1, 16]
    assert dropped(1 / 3, 24 * 4096) == 32768


def test_equal_scores_lose_equally_and_by_the_lower_index() -> None:
    equal = Scores(units=(np.ones(6), np.ones(6)), heads=(np.ones(4), np.ones(4)))
    found = decide(equal, {**HALVES, "ffn": 0.5, "heads": 0.25})
    assert found.units == ((3, 4, 5), (3, 4, 5))
    assert found.heads == ((1, 2, 3), (1, 2, 3))


def test_every_layer_keeps_one_unit_and_the_count_stays_exact() -> None:
    uneven = Scores(units=(np.arange(6.0), np.arange(6.0) + 100))
    found = decide(uneven, {**HALVES, "ffn": 0.75, "ffn_scope": "global"})
    assert found.units == ((5,), (4, 5))
    assert found.spared == 1
    alone = decide(uneven, {**HALVES, "ffn": 0.75, "ffn_scope": "layer"})
    assert alone.units == ((5,), (5,))


def test_one_module_and_one_rank_stay_whatever_the_ratios_round_to() -> None:
    few = Scores(modules={"0:a": 1.0, "0:b": 2.0}, ranks={"0:a": np.ones(1), "0:b": np.array([0.5])})
    assert decide(few, {**HALVES, "modules": 0.75, "ranks": 0.9}).ranks == {"0:b": (0,)}


def test_scores_that_are_no_numbers_go_first() -> None:
    broken = Scores(units=(np.array([2.0, np.nan, 1.0, np.inf]),))
    assert decide(broken, {**HALVES, "ffn": 0.5}).units == ((0, 2),)


def test_rows_of_fused_projections() -> None:
    grouped = HeadShape(groups=2, queries=2, head_dim=1)
    assert grouped.fused_rows([1], BLOCKS) == [2, 3, 5, 7]
    assert grouped.fused_rows([1], GROUPS) == [4, 5, 6, 7]
    assert HeadShape(3, 1, 2).fused_rows([0, 2], GROUPS) == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
