"""IST against its formula, against damping by hand, and on a model of which only known layers can matter."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.domain.candidate import Candidate
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.policies.damping import Damping
from autopeft.evaluate.policies.draws import share, stream, subset
from autopeft.evaluate.policies.ist import _Running, distinct_subsets, rewards, sigmoid, updated
from autopeft.evaluate.policies.probes import probe_rows
from tests.unit.policy_runs import insertion_of, model_of, policy_of, rows, training

# -- the rule


def slow_update(scores: list[float], losses: list[float], subsets: list[tuple[int, ...]], eta: float) -> list[float]:
    """`R_k = exp(-l_k) - (1/K) sum_j exp(-l_j)`, `s_i <- s_i + eta sum_k 1[i in S_k] R_k p_i (1 - p_i)`."""
    new = list(scores)
    for i in range(len(scores)):
        p = 1 / (1 + np.exp(-scores[i]))
        for k, chosen in enumerate(subsets):
            r = np.exp(-losses[k]) - sum(np.exp(-loss) for loss in losses) / len(losses)
            if i in chosen:
                new[i] += eta * r * p * (1 - p)
    return new


def test_the_update_is_that_of_the_formula() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        scores = random.normal(size=6).tolist()
        losses = random.random(3).tolist()
        subsets = [tuple(sorted(random.permutation(6)[:3].tolist())) for _ in range(3)]
        found = updated(scores, subsets, rewards(losses, "exponential"), 10.0)
        assert found == pytest.approx(slow_update(scores, losses, subsets, 10.0), rel=1e-12)


def test_damping_that_did_no_harm_raises_the_score_which_is_less_importance() -> None:
    found = updated((0.0, 0.0), [(0,), (1,)], rewards([0.2, 0.9], "exponential"), 10.0)
    assert found[0] > 0 > found[1]


def test_standardised_rewards_do_not_vanish_where_losses_are_high() -> None:
    assert max(map(abs, rewards([9.0, 9.5, 10.0], "exponential"))) < 1e-3
    assert rewards([9.0, 9.5, 10.0], "standardised") == pytest.approx([math.sqrt(1.5), 0.0, -math.sqrt(1.5)])
    assert rewards([2.0, 2.0], "standardised") == [0.0, 0.0]


def test_subsets_are_drawn_one_after_another_by_weight() -> None:
    weights, number = [0.5, 0.25, 0.15, 0.1], 4000
    random, often = np.random.default_rng(1), dict.fromkeys(itertools.combinations(range(4), 2), 0)
    for _ in range(number):
        one, two = subset(random, range(4), 2, weights)
        often[one, two] += 1
    for (one, two), count in often.items():
        a, b = weights[one], weights[two]
        exact = a * b / (1 - a) + b * a / (1 - b)
        assert abs(count - number * exact) < 5 * math.sqrt(number * exact * (1 - exact)), (one, two)


def test_different_subsets_are_drawn_as_far_as_there_are_any() -> None:
    random = np.random.default_rng(2)
    assert sorted(distinct_subsets(random, [1.0] * 3, 2, 9)) == [(0, 1), (0, 2), (1, 2)]
    assert distinct_subsets(random, [1.0], 1, 3) == [(0,)]
    # One layer is as good as never drawn; the third subset comes all the same, and soon.
    assert len(set(distinct_subsets(random, [1.0, 1.0, 1e-300], 2, 3))) == 3


def test_shares_are_rounded_down_and_leave_one_layer_at_least() -> None:
    assert [share(0.25, layers) for layers in (1, 3, 4, 7, 8, 32)] == [1, 1, 1, 1, 2, 8]
    assert [share(tenths / 10, 10) for tenths in range(1, 11)] == list(range(1, 11))


def test_probe_rows_are_different_rows_of_the_training_and_as_many_as_asked_for() -> None:
    batches = [rows(number) for number in range(4)] * 2
    found = probe_rows(batches, 20, stream(1, 10, 5))
    ids = [row for batch in found for row in batch.row_ids]
    assert len(ids) == len(set(ids)) == 20
    assert [batch.rows for batch in found] == [8, 8, 4]
    whole = {row: (batch, place) for batch in batches for place, row in enumerate(batch.row_ids)}
    for batch in found:
        for place, row in enumerate(batch.row_ids):
            source, where = whole[row]
            assert torch.equal(batch.inputs["input_ids"][place], source.inputs["input_ids"][where])
            assert batch.labels[place] == source.labels[where]
    assert sum(batch.rows for batch in probe_rows(batches, 99, stream(1, 10, 5))) == 32
    assert ids != [row for batch in probe_rows(batches, 20, stream(1, 20, 5)) for row in batch.row_ids]


# -- damping


def perturbed(parameters: list[torch.Tensor]) -> None:
    """Off the zeros that adapters start from."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def in_layers(run: Any, layers: tuple[int, ...] = (0, 1, 2, 3)) -> list[torch.Tensor]:
    return [part for layer in layers for part in run.gates.parameters(layer)]


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize(
    ("method", "last"), [("lora", "lora_B"), ("rslora", "lora_B"), ("serial", "up"), ("parallel", "up")]
)
def test_a_probe_sees_the_output_of_the_damped_layers_times_the_factor(kind: str, method: str, last: str) -> None:
    """The reference: the last matrix of every adapter of these layers multiplied by the factor."""
    policy = policy_of("ist", interval=1, probes=2, factor=0.25, rows=16, damped=0.5)
    with training(kind, policy, method=method, steps=3, dropout=0.0) as (run, inserted):
        perturbed(in_layers(run))
        running = run._policy
        assert isinstance(running, _Running)
        found = running._loss([rows(0)], (1, 3))
        before = {name: part.detach().clone() for name, part in inserted.base.named_parameters()}
        with torch.no_grad():
            for index in (1, 3):
                for name, part in inserted.base.get_submodule(inserted.layout.layers[index].path).named_parameters():
                    if last in name.split("."):
                        part *= 0.25
        inserted.model.eval()
        with torch.no_grad():
            assert found == pytest.approx(run._loss(rows(0)).item(), rel=1e-6)
            for name, part in inserted.base.named_parameters():
                part.copy_(before[name])
            assert abs(found - run._loss(rows(0)).item()) > 1e-4


def test_attributes_of_other_modules_with_the_same_name_are_left_alone() -> None:
    with training("llama", policy_of("ist"), method="lora") as (_, inserted):
        attention = inserted.base.get_submodule(inserted.layout.layers[0].attention)
        scale = attention.scaling
        with Damping(inserted.base, inserted.layout).at((0, 1), 0.0):
            assert attention.scaling == scale > 0
            adapters = [one for one in attention.modules() if hasattr(one, "lora_A")]
            assert adapters
            assert all(one.scaling == {"default": 0.0} for one in adapters)


def test_scales_come_back_exactly_even_where_a_probe_fails() -> None:
    with training("bert", policy_of("ist"), method="rslora") as (_, inserted):
        adapters = [one for one in inserted.base.modules() if hasattr(one, "lora_A")]
        before = [dict(one.scaling) for one in adapters]
        with pytest.raises(RuntimeError), Damping(inserted.base, inserted.layout).at((0, 3), 0.3):
            raise RuntimeError
        assert [one.scaling for one in adapters] == before


# -- training


def test_probes_change_nothing_but_the_scores() -> None:
    """The same choices without probing train the same weights: the probes leave mode, random state and scales alone."""
    policy = policy_of("ist", interval=2, trained=1.0)
    with training("bert", policy, method="lora", dropout=0.3, steps=6) as (run, _):
        losses = [step.loss for step in run.run()]
        assert [step for step, _ in run.layer_scores()] == [2, 4]
    with training("bert", None, method="lora", dropout=0.3, steps=6) as (run, _):
        assert [step.loss for step in run.run()] == losses


def test_scores_over_a_training_are_those_of_the_formula_with_losses_by_hand() -> None:
    policy = policy_of("ist", interval=2, probes=3, rows=16, trained=0.5)
    with training("bert", policy, method="serial", steps=5) as (run, inserted):
        running, expected = run._policy, [0.0] * 4
        assert isinstance(running, _Running)
        for step in run.run():
            if step.number not in (2, 4):
                continue
            # What the policy is about to do, by hand: the same rows and subsets, and a forward pass per subset.
            at = step.number
            chosen = probe_rows(run._batches, 16, stream(3, at, 5))
            subsets = distinct_subsets(stream(3, at, 4), [sigmoid(score) for score in expected], 2, 3)
            assert len(set(subsets)) == 3
            losses = []
            for one in subsets:
                scaled = [
                    adapter
                    for place in one
                    for adapter in inserted.base.get_submodule(inserted.layout.layers[place].path).modules()
                    if hasattr(adapter, "down")
                ]
                for adapter in scaled:
                    adapter.scale *= 0.25
                inserted.model.eval()
                with torch.no_grad():
                    losses.append(sum(run._loss(batch).item() for batch in chosen) / len(chosen))
                for adapter in scaled:
                    adapter.scale /= 0.25
            run._training_mode()
            expected = slow_update(expected, losses, subsets, 10.0)
        scores = run.layer_scores()
        assert [step for step, _ in scores] == [2, 4]
        assert scores[-1][1] == pytest.approx([-one for one in expected], rel=1e-9)


MATTER = (1, 3)


def planted(kind: str) -> Any:
    """A model in which the attention and feed-forward parts of every other layer add nothing, whatever is inserted."""
    model = model_of(kind)
    layout = inspect_layout(model)
    with torch.no_grad():
        for index in set(range(4)) - set(MATTER):
            for role in ("attention.output", "ffn.out"):
                module = layout.layers[index].module(role)
                assert module is not None
                for part in model.get_submodule(module.path).parameters():
                    part.zero_()
    return model


def learnable(number: int) -> Batch:
    """The label is whether the first word is one of the first eight."""
    batch = rows(number % 6, size=16)
    return Batch(batch.inputs, (batch.inputs["input_ids"][:, 0] < 12).long(), batch.row_ids, batch.tokens)


@pytest.mark.parametrize(("kind", "reward"), [("bert", "exponential"), ("llama", "standardised")])
def test_ist_ranks_first_the_only_layers_that_can_matter(kind: str, reward: str) -> None:
    rate = 10.0 if reward == "exponential" else 0.3
    policy = policy_of("ist", interval=4, probes=6, trained=0.5, factor=0.0, rows=96, reward=reward, score_rate=rate)
    model = planted(kind)
    with training(kind, policy, steps=80, model=model, batch=learnable) as (run, _):
        often = [0] * 4
        for step in run.run():
            for layer in run.gates.open:
                often[layer] += step.number > 40
        final = run.layer_scores()[-1][1]
    ranked = sorted(range(4), key=lambda layer: -final[layer])
    assert set(ranked[:2]) == set(MATTER), final
    assert min(often[layer] for layer in MATTER) > max(often[layer] for layer in (0, 2)), often


# -- where it fits


def candidate(method: str, *others: str) -> tuple[Candidate, Any]:
    layout = inspect_layout(model_of("bert"))
    insertions = tuple(insertion_of(layout, one) for one in (method, *others))
    return Candidate(insertions=insertions, learning_rate=1e-3, policy=policy_of("ist")), layout


@pytest.mark.parametrize("methods", [("lora",), ("dora",), ("serial",), ("parallel", "serial", "lora")])
def test_methods_with_an_output_scale_are_taken(methods: tuple[str, ...]) -> None:
    assert POLICIES["ist"].problems(*candidate(*methods)) == []


@pytest.mark.parametrize(
    "methods", [("prefix",), ("lora", "prefix"), ("ia3",), ("full-layers",), ("loha",), ("pissa",)]
)
def test_other_methods_are_refused_with_those_that_are_allowed(methods: tuple[str, ...]) -> None:
    (problem,) = POLICIES["ist"].problems(*candidate(*methods))
    assert problem.where == "policy"
    assert problem.found.startswith(methods[-1])
    assert {"lora", "dora", "serial", "parallel"} <= set(problem.allowed.split(", "))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_methods_that_no_policy_can_choose_layers_of_are_refused(name: str) -> None:
    rules = POLICIES[name]
    layout = inspect_layout(model_of("bert"))
    for method, reason in (
        ("prompt-tuning", "nothing inside the layers"),
        ("p-tuning", "nothing inside the layers"),
        ("adalora", "gradients of every layer"),
        ("adamss-asa", "gradients of every layer"),
        ("increlora", "gradients of every layer"),
        ("lora-fa", "gradients of every layer"),
        ("unilora", "all layers share"),
    ):
        one = Candidate(insertions=(insertion_of(layout, method),), learning_rate=1e-3)
        assert reason in rules.problems(one, layout)[0].found
    assert rules.problems(Candidate(insertions=(), learning_rate=1e-3), layout)
