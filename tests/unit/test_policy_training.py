"""What every policy promises of the training: frozen layers stay as they are, cost nothing, and come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Candidate, Policy
from autopeft.evaluate.insertion import Inserted
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.train import Training
from tests.unit.policy_runs import (
    head_parameters,
    insertion_of,
    model_of,
    moved_layers,
    policy_of,
    rows,
    training,
    values,
)

SOME = {
    "ist": policy_of("ist", interval=3, probes=3, trained=0.5, score_rate=30.0),
    "random-sparse": policy_of("random-sparse", trained=0.5),
    "lisa": policy_of("lisa", layers=1, interval=2),
    "top-layers": policy_of("top-layers", layers=2),
    "gradual-unfreeze": policy_of("gradual-unfreeze", interval=2),
}
DROPPING = policy_of("dropbp", drop=0.5, sensitivity_at=0.3)
"""It closes no layer, so that it is told apart here."""
KINDS = ("bert", "llama")


def test_every_policy_is_tested_here() -> None:
    assert {*SOME, "dropbp"} == POLICIES.keys()


def followed(run: Training, inserted: Inserted) -> list[tuple[set[int], set[int]]]:
    """Per step, the layers that were open, and those whose parameters changed."""
    found, before = [], values(inserted)
    for _ in run.run():
        found.append((set(run.gates.open), moved_layers(before, inserted)))
        before = values(inserted)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOME)
def test_only_open_layers_and_the_head_change_and_only_they_hold_gradients(name: str, kind: str) -> None:
    with training(kind, SOME[name], method="serial") as (run, inserted):
        heads = [part.detach().clone() for part in head_parameters(inserted)]
        held: list[set[int]] = []
        step = run._optimizer.step

        def look(*arguments: Any) -> Any:
            held.append(
                {layer for layer in run.gates.layers if any(p.grad is not None for p in run.gates.parameters(layer))}
            )
            return step(*arguments)

        run._optimizer.step = look  # type: ignore[method-assign]
        steps = followed(run, inserted)
        assert held == [opened for opened, _ in steps]
        assert all(moved == opened for opened, moved in steps)
        assert all(opened for opened, _ in steps)
        assert not all(torch.equal(one, now) for one, now in zip(heads, head_parameters(inserted), strict=True))
        run.free()
        assert all(part.requires_grad for layer in run.gates.layers for part in run.gates.parameters(layer))


@pytest.mark.parametrize("name", SOME)
def test_with_every_layer_open_the_training_is_the_plain_one(name: str) -> None:
    everything = {
        "ist": policy_of("ist", trained=1.0, interval=100),
        "random-sparse": policy_of("random-sparse", trained=1.0),
        "lisa": policy_of("lisa", layers=9),
        "top-layers": policy_of("top-layers", layers=9),
        "gradual-unfreeze": policy_of("gradual-unfreeze", interval=1),
    }
    opened = policy_of("top-layers", layers=1) if name == "gradual-unfreeze" else None
    with training("bert", opened, dropout=0.1, steps=1 if opened else 6) as (run, _):
        plain = [step.loss for step in run.run()]
    with training("bert", everything[name], dropout=0.1, steps=1 if opened else 6) as (run, _):
        assert [step.loss for step in run.run()] == plain


def choices(policy: Policy, steps: int, seed: int = 3, layers: int = 4) -> list[tuple[int, ...]]:
    with training(policy=policy, steps=steps, seed=seed, model=model_of("bert", layers)) as (run, _):
        return [tuple(sorted(run.gates.open)) for _ in run.run()]


def test_random_sparse_trains_the_exact_share_in_every_step_and_every_layer_about_equally_often() -> None:
    # The choice alone, without training: a policy's draw depends on seed and step only.
    found = []
    with training(policy=policy_of("random-sparse", trained=0.45), model=model_of("bert", 6)) as (run, _):
        for step in range(1200):
            assert run._policy is not None
            run._policy.before_step(step)
            found.append(run.gates.open)
    assert {len(one) for one in found} == {2}  # floor(0.45 * 6)
    often = [sum(layer in one for one in found) for layer in range(6)]
    # 1200 draws of 1/3: a standard deviation of 16.
    assert all(abs(number - 400) < 5 * 16.4 for number in often), often
    assert len(set(found)) == 15  # every pair


def test_lisa_keeps_its_layers_for_a_period_and_draws_them_uniformly() -> None:
    found = choices(policy_of("lisa", layers=2, interval=3), 12)
    assert all(len(one) == 2 for one in found)
    assert all(len(set(found[start : start + 3])) == 1 for start in range(0, 12, 3))
    assert len(set(found)) > 1


@pytest.mark.parametrize("method", ["lora", "full-layers", "full"])
def test_lisa_forgets_the_optimiser_state_of_layers_that_it_freezes_again(method: str) -> None:
    with training(policy=SOME["lisa"], method=method, steps=8) as (run, _):
        seen = set()
        for _ in run.run():
            seen |= run.gates.open
            for layer in run.gates.layers:
                known = {part in run._optimizer.state for part in run.gates.parameters(layer)}
                assert known == {layer in run.gates.open}, (layer, run.gates.open)
        assert len(seen) > 1  # some layer was frozen again
        assert run.gates.below == (method == "full")


def test_random_sparse_keeps_the_moments_as_the_released_code_does() -> None:
    with training(policy=SOME["random-sparse"], steps=8) as (run, _):
        touched: set[int] = set()
        for _ in run.run():
            touched |= run.gates.open
            known = {
                layer
                for layer in run.gates.layers
                if all(p in run._optimizer.state for p in run.gates.parameters(layer))
            }
            assert known == touched


def test_top_layers_and_gradual_unfreezing_start_from_the_top() -> None:
    assert choices(policy_of("top-layers", layers=2), 2) == [(2, 3)] * 2
    assert choices(policy_of("gradual-unfreeze", interval=2), 9) == [
        *[(3,)] * 2,
        *[(2, 3)] * 2,
        *[(1, 2, 3)] * 2,
        *[(0, 1, 2, 3)] * 3,
    ]


@pytest.mark.parametrize("name", ["ist", "random-sparse", "lisa"])
def test_choices_are_a_function_of_the_seed(name: str) -> None:
    one, same, other = (choices(SOME[name], 10, seed) for seed in (5, 5, 6))
    assert one == same
    assert one != other


def test_dropout_goes_by_what_may_train_in_the_trial() -> None:
    with training(policy=policy_of("top-layers", layers=1), layers=(1, 2, 3), dropout=0.2, steps=2) as (run, inserted):
        for _ in run.run():
            modes = [inserted.base.get_submodule(layer.path).training for layer in inserted.layout.layers]
            assert modes == [False, True, True, True]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ist", "bert"),
        ("ist", "llama"),
        ("lisa", "bert"),
        ("random-sparse", "llama"),
        ("dropbp", "bert"),
        ("top-layers", "bert"),
        ("gradual-unfreeze", "bert"),
        ("all", "bert"),
    ],
)
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(name: str, kind: str) -> None:
    policy = {**SOME, "dropbp": DROPPING, "all": None}[name]
    with training(kind, policy, dropout=0.2, steps=9) as (run, inserted):
        whole = [step.loss for step in run.run()]
        weights, scores = values(inserted), run.layer_scores()
    with training(kind, policy, dropout=0.2, steps=9) as (run, _):
        steps = run.run()
        first = [next(steps).loss for _ in range(5)]
        state = run.state()
        del steps
    torch.manual_seed(99)
    with training(kind, policy, dropout=0.2, steps=9) as (run, inserted):
        run.load(state)
        rest = list(run.run())
        assert [step.number for step in rest] == [6, 7, 8, 9]
        assert first + [step.loss for step in rest] == whole
        assert run.layer_scores() == scores
        for part, values_now in values(inserted).items():
            assert torch.equal(values_now, weights[part]), part


def test_a_state_of_something_else_is_refused() -> None:
    with training(method="serial") as (run, _):
        state = run.state()
    with training(method="lora") as (run, _), pytest.raises(ValueError, match="something else"):
        run.load(state)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_low_layers_save_no_activations(kind: str) -> None:
    peaks, means = {}, {}
    for layers in (1, 2, 4):
        with training(kind, policy_of("top-layers", layers=layers), method="lora", steps=4) as (run, _):
            for _ in run.run():
                pass
            peaks[layers], means[layers] = run.meter.peak(), run.meter.mean_bytes()
    with training(kind, None, steps=4) as (run, _):
        for _ in run.run():
            pass
        plain, plain_mean = run.meter.peak(), run.meter.mean_bytes()
    assert plain is not None
    assert plain_mean is not None
    assert peaks[1].live_bytes < peaks[2].live_bytes < peaks[4].live_bytes == plain.live_bytes  # type: ignore[union-attr]
    assert means[1] < means[2] < means[4] == plain_mean  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_stops_at_the_lowest_open_layer(kind: str) -> None:
    with training(kind, policy_of("top-layers", layers=2), steps=1) as (run, inserted):
        seen: dict[int, bool] = {}
        for layer in inserted.layout.layers:
            inserted.base.get_submodule(layer.path).register_forward_hook(
                lambda module, inputs, output, index=layer.index: seen.update(
                    {index: (output[0] if isinstance(output, tuple) else output).requires_grad}
                )
            )
        list(run.run())
        assert seen == {0: False, 1: False, 2: True, 3: True}


def test_the_heaviest_step_is_watched_and_the_mean_lies_below_the_peak() -> None:
    policy = policy_of("random-sparse", trained=0.25)
    with training(policy=policy, steps=24, batch=lambda number: rows(number, width=4 + number % 5)) as (run, _):
        list(run.run())
        peak, mean = run.meter.peak(), run.meter.mean_bytes()
    with training(policy=policy, steps=24, batch=lambda number: rows(number, width=4 + number % 5)) as (run, _):
        run.meter._steps = frozenset(range(24))  # type: ignore[attr-defined]
        list(run.run())
        exact = run.meter.peak()
    assert peak is not None
    assert exact is not None
    assert mean is not None
    assert peak.live_bytes == exact.live_bytes
    assert mean < peak.live_bytes


@pytest.mark.slow
def test_every_method_that_is_not_refused_can_be_trained_layer_by_layer() -> None:
    policy, tried, refused = policy_of("lisa", layers=1, interval=1), [], []
    small = model_of("llama", 2)
    layout = inspect_layout(small)
    calibrated = ("eva", "corda", "lora-ga", "spt-lora", "spt-ranks")  # need training rows, and train as LoRA does
    for method in METHODS:
        insertion = insertion_of(layout, method)
        if METHODS[method].problems(insertion, layout) or method in calibrated:
            continue
        candidate = Candidate(insertions=(insertion,), learning_rate=1e-3, policy=policy)
        if POLICIES["lisa"].problems(candidate, layout):
            refused.append(method)
            continue
        tried.append(method)
        with training("llama", policy, method=method, steps=1, model=small) as (run, _):
            assert run._policy is not None
            run._policy.before_step(0)
            closed = [layer for layer in run.gates.layers if layer not in run.gates.open]
            assert closed, method
            assert any(not part.requires_grad for layer in closed for part in run.gates.parameters(layer)), method
            assert run._loss(rows(0)).requires_grad, method
    assert {"adalora", "increlora", "lora-fa", "unilora", "tinylora"} <= set(refused)
    assert len(tried) > 40


def test_a_closed_layer_lets_go_of_the_gradients_it_holds() -> None:
    with training() as (run, _):
        run._loss(rows(0)).backward()
        run.gates.set({1, 3})
        for layer in range(4):
            held = [part.grad is not None for part in run.gates.parameters(layer)]
            assert all(held) if layer in (1, 3) else not any(held)
        with pytest.raises(ValueError, match="nothing trainable"):
            run.gates.set({4})
