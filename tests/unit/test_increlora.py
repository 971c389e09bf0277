"""IncreLoRA grows the modules that a slow reference says, when it says, and a training of it can be broken off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from autopeft.domain.candidate import Candidate, Insertion, Pruning
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.insertion import Inserted, insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.predictor import StepPredictor
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.methods.growth import schedule_of, shared_out
from autopeft.evaluate.methods.increlora_modules import SPARE, Growing, Growth
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.evaluate.train import Training
from tests.contract.method_runs import Base, base_of, batches_of, inserted_in, logits_of, put_in, train
from tests.unit.evaluate_models import config_of
from tests.unit.evaluate_trials import opened, run, spec_of, task_of
from tests.unit.policy_runs import insertion_of as small
from tests.unit.policy_runs import model_of, rows, training, values

BETA = 0.85


def insertion_of(base: Base, layers: tuple[int, ...] = (0, 1, 2), **settings: Any) -> Insertion:
    method = METHODS["increlora"]
    given = {**method.facts.defaults, "rank": 4, "top": 1 / 3, "warmup": 0.1, "interval": 0.1, **settings}
    return Insertion(method="increlora", layers=layers, modules=method.default_modules(base.layout), settings=given)


def growing(inserted: Inserted) -> dict[str, Growing]:
    (companion,) = inserted.companions
    assert isinstance(companion, Growth)
    return companion._modules


def update_of(module: Growing) -> np.ndarray:
    """dW, entry by entry."""
    found = np.zeros((module.wide_out, module.wide_in))
    for first, second, value in zip(module.A, module.B, module.E, strict=True):
        found += module.scale * value.item() * np.outer(second.detach().numpy(), first.detach().numpy())
    return found


# -- the schedule


def test_published_settings_grow_as_published() -> None:
    # SST-2: 72 modules to rank 8, 6 at a time by 4 ranks, 1000 steps of 50 520 before the first growth and between two.
    schedule = schedule_of(50520, 72, 8, top=6 / 72, warmup=1000 / 50520, interval=1000 / 50520)
    assert (schedule.block, schedule.top, schedule.at[:3]) == (4, 6, (1000, 2000, 3000))
    ranks, grown = 72, 0
    for step in range(1, 50521):
        due = schedule.due(step, ranks)
        assert due in (0, 24)
        ranks, grown = ranks + due, grown + bool(due)
    assert (ranks, grown) == (8 * 72, 21)  # 7 * 72 ranks in steps of 24
    for target, block in ((2, 1), (4, 2), (6, 3), (8, 4)):
        assert schedule_of(50520, 72, target, top=6 / 72, warmup=0.02, interval=0.02).block == block


@pytest.mark.parametrize("steps", [2, 3, 5, 8, 20, 100, 333])
@pytest.mark.parametrize(("modules", "target"), [(1, 2), (3, 8), (6, 3), (24, 8), (50, 16)])
@pytest.mark.parametrize("top", [0.01, 1 / 12, 1.0])
def test_any_training_of_two_steps_reaches_the_target_before_its_second_half(
    steps: int, modules: int, target: int, top: float
) -> None:
    for warmup, interval in ((0.0, 0.0005), (0.02, 0.02), (0.4, 0.4), (0.1, 0.3)):
        schedule = schedule_of(steps, modules, target, top=top, warmup=warmup, interval=interval)
        ranks = [1] * modules
        draw = np.random.default_rng(0)
        for step in range(1, steps + 1):
            due = schedule.due(step, sum(ranks))
            if not due:
                continue
            assert max(1, round(warmup * steps)) <= step <= max(steps / 2, round(warmup * steps), 1)
            assert step < steps
            more = shared_out(draw.random(modules).tolist(), ranks, [2 * target] * modules, due, schedule.block)
            assert sum(more) == due
            ranks = [one + extra for one, extra in zip(ranks, more, strict=True)]
        assert sum(ranks) == target * modules


def test_a_single_step_grows_nothing() -> None:
    assert schedule_of(1, 4, 8, top=0.5, warmup=0.02, interval=0.02).at == ()


def test_ranks_go_by_score_then_place_and_never_above_what_a_module_can_have() -> None:
    assert shared_out([1.0, 3.0, 2.0, 3.0], [1, 1, 1, 1], [9, 9, 9, 9], 4, 2) == [0, 2, 0, 2]
    assert shared_out([1.0, 3.0, 2.0, 3.0], [1, 1, 1, 1], [9, 9, 9, 9], 5, 2) == [0, 2, 1, 2]
    assert shared_out([1.0, 3.0, 2.0], [1, 4, 1], [4, 4, 4], 4, 2) == [2, 0, 2]
    assert shared_out([1.0, 3.0], [1, 1], [8, 4], 8, 2) == [5, 3]  # twice around


# -- scores, smoothing and choice, against a slow reference


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_scores_and_ranks_are_those_of_a_slow_reference(kind: str) -> None:
    base, steps = base_of(kind), 14
    insertion = insertion_of(base, rank=3)
    with inserted_in(base, insertion, steps) as inserted:
        (companion,) = inserted.companions
        assert isinstance(companion, Growth)
        modules, optimizer = growing(inserted), inserted.optimizer(5e-2, 0.0)
        mean, deviation = np.zeros(len(modules)), np.zeros(len(modules))
        ranks, most = [1] * len(modules), [min(one.wide_in, one.wide_out) for one in modules.values()]
        at = list(range(1, steps // 2 + 1))  # warm-up and interval are a step each
        block, top = max(1, math.ceil(2 / len(at))), max(1, round(len(modules) / 3))
        batches = batches_of(kind)
        for step in range(1, steps + 1):
            inserted.model.eval()
            for module in modules.values():
                module.train()  # which is what the score looks at; there is no dropout
            batch = batches[step % 2]
            if step <= at[-1] and sum(ranks) < 3 * len(modules):
                expected = []
                for path, module in modules.items():
                    weight = base.model.get_submodule(path).weight.requires_grad_(True)
                    (gradient,) = torch.autograd.grad(inserted.model(**batch).loss, weight)
                    weight.requires_grad_(False)
                    whole = gradient.numpy().T if module.transposed else gradient.numpy()
                    expected.append(np.abs(update_of(module) * whole).sum() / math.sqrt(whole.size))
                for module in modules.values():
                    module.score.zero_()  # the reference has passed through them
                mean = BETA * mean + (1 - BETA) * np.array(expected)
                deviation = BETA * deviation + (1 - BETA) * np.abs(np.array(expected) - mean)
                if step in at:
                    missing = 3 * len(modules) - sum(ranks)
                    due = min(missing, max(top * block, math.ceil(missing / sum(one >= step for one in at))))
                    for index in sorted(range(len(modules)), key=lambda one: -(mean * deviation)[one]):
                        more = min(block, due, most[index] - ranks[index])
                        ranks[index] += more
                        due -= more
            inserted.model(**batch).loss.backward()
            inserted.before_update()
            optimizer.step()
            inserted.after_step(step)
            optimizer.zero_grad()
            np.testing.assert_allclose(companion.scores(), mean * deviation, rtol=2e-3, atol=1e-12)
            assert [module.rank for module in modules.values()] == ranks, step
        assert sum(ranks) == 3 * len(modules)


def test_modules_that_do_not_matter_stay_at_rank_one() -> None:
    base = base_of("bert")
    with torch.no_grad():  # whatever attention says in layers 0 and 2 is multiplied by nothing
        for index in (0, 2):
            base.model.bert.encoder.layer[index].attention.output.dense.weight.zero_()
    with inserted_in(base, insertion_of(base), 30) as inserted:
        train(base, inserted, 30, 5e-2)
        ranks = {path: module.rank for path, module in growing(inserted).items()}
    assert {rank for path, rank in ranks.items() if ".layer.1." not in path} == {1}
    assert sum(rank for path, rank in ranks.items() if ".layer.1." in path) == 4 * 6 - 4


# -- growing


def test_growing_changes_no_output_and_lets_parameters_join() -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base), 40) as inserted:
        optimizer = inserted.optimizer(1e-2, 0.0)
        kept = {id(part) for group in optimizer.param_groups for part in group["params"]}
        for step in range(1, 4):
            inserted.model(**batches_of("bert")[0]).loss.backward()
            optimizer.step()
            assert not inserted.after_step(step)
        before = logits_of(inserted.model, "bert")
        moments = {id(part): state["exp_avg"].clone() for part, state in optimizer.state.items()}
        spare = [module.A[-1] for module in growing(inserted).values()]
        assert all(id(part) in moments for part in spare), "spare ranks are trained"
        assert inserted.after_step(4)
        after = logits_of(inserted.model, "bert")
        grown = [module for module in growing(inserted).values() if module.rank > 1]
        assert len(grown) == 2
        assert torch.allclose(after, before, atol=1e-6)  # by the new spare ranks alone, 1e-5 times 0.02 times 0.02
        assert {id(part) for part in optimizer.state} == kept & moments.keys()
        assert all(torch.equal(state["exp_avg"], moments[id(part)]) for part, state in optimizer.state.items())
        (late,) = optimizer.param_groups[1:]
        expected = {id(part) for one in grown for part in (*one.E[1:3], *one.A[3:5], *one.B[3:5])}
        assert {id(part) for part in late["params"]} == expected
        held = [part for group in optimizer.param_groups for part in group["params"]]
        assert sorted(map(id, held)) == sorted(map(id, inserted.trainable()))


def test_e_of_a_spare_rank_stays_until_it_is_needed_and_spares_go_at_the_target() -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base), 20) as inserted:
        for step in range(1, 21):
            for module in growing(inserted).values():
                assert [part.requires_grad for part in module.E] == [True] * module.rank + [False] * module.spares
                assert all(part.item() == pytest.approx(SPARE) for part in module.E[module.rank :])
            train_once(base, inserted, step)
        assert not any(module.spares or module.watched for module in growing(inserted).values())
        assert sum(module.rank for module in growing(inserted).values()) == 4 * 6


def train_once(base: Base, inserted: Inserted, step: int) -> None:
    optimizer = inserted.learner or inserted.optimizer(5e-2, 0.0)
    inserted.model.train()
    inserted.model(**batches_of(base.kind)[step % 2]).loss.backward()
    inserted.before_update()
    optimizer.step()
    inserted.after_step(step)
    optimizer.zero_grad()


def test_the_penalty_pulls_as_its_gradient_says_and_is_no_part_of_the_loss() -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base, orthogonality=0.3), 20) as inserted:
        for step in range(1, 6):
            train_once(base, inserted, step)
        modules = growing(inserted).values()
        loss = 0.0
        for module in modules:
            for part in (module.A, module.B):
                matrix = torch.stack(list(part))
                loss = loss + torch.linalg.norm(matrix @ matrix.T - torch.eye(len(matrix)))
        parts = [one for module in modules for part in (module.A, module.B) for one in part]
        expected = torch.autograd.grad(0.3 * loss / (2 * len(modules)), parts)
        parts[0].grad = torch.ones_like(parts[0])
        inserted.before_update()
        assert torch.allclose(parts[0].grad, expected[0] + 1, atol=1e-6)
        for part, gradient in zip(parts[1:], expected[1:], strict=True):
            assert torch.allclose(part.grad, gradient, atol=1e-6)


def test_passes_of_one_step_add_up_and_recomputed_ones_count_once() -> None:
    base = base_of("bert")
    scores = []
    for mode in ("plain", "twice", "checkpointed"):
        with inserted_in(base, insertion_of(base), 20) as inserted:
            for step in range(1, 3):
                train_once(base, inserted, step)
            for module in inserted.model.modules():
                module.training = isinstance(module, Growing)
            if mode == "checkpointed":
                base.model.gradient_checkpointing_enable({"use_reentrant": False})
                for layer in base.model.bert.encoder.layer:
                    layer.training = True
            for _ in range(2 if mode == "twice" else 1):
                (inserted.model(**batches_of("bert")[0]).loss / (2 if mode == "twice" else 1)).backward()
            scores.append([module.score.item() for module in growing(inserted).values()])
            base.model.gradient_checkpointing_disable()
    plain, twice, checkpointed = scores
    assert min(plain) > 0
    assert twice == pytest.approx(plain, rel=1e-4)
    assert checkpointed == pytest.approx(plain, rel=1e-4)


# -- in a training


def test_what_joins_begins_the_learning_rate_anew() -> None:
    with training(method="increlora", steps=20, spec={"warmup": 0.2, "schedule": "linear"}) as (run, _):
        seen: dict[int, list[float]] = {}
        for step in run.run():
            for number, group in enumerate(run._optimizer.param_groups):
                seen.setdefault(number, []).append(group["lr"])
                if number:
                    assert group["joined"] <= step.number
        starts = [0, *(group["joined"] for group in run._optimizer.param_groups[1:])]
        assert len(starts) > 2
        for number, start in enumerate(starts):
            left = 20 - start
            # After so many own steps, the rate of the next one: up over 4 steps, then down to 0 at the end.
            rates = [1e-2 * min(step / 4, (left - step) / (left - 4)) for step in range(0 if start else 1, left + 1)]
            assert seen[number] == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize(("kind", "stop"), [("bert", 1), ("bert", 4), ("bert", 7), ("llama", 3)])
def test_a_training_broken_off_while_it_grows_goes_on_as_if_it_had_not_been(kind: str, stop: int) -> None:
    with training(kind, method="increlora", dropout=0.2, steps=10, spec={"warmup": 0.1}) as (run, inserted):
        whole, state = [], {}
        for step in run.run():
            whole.append(step.loss)
            if step.number == stop:
                state = run.state()
        weights, form, scores = values(inserted), inserted.companions[0].form(), inserted.companions[0].scores()
    torch.manual_seed(99)
    with training(kind, method="increlora", dropout=0.2, steps=10, spec={"warmup": 0.1}) as (run, inserted):
        run.load(state)
        assert [step.loss for step in run.run()] == whole[stop:]
        assert inserted.companions[0].form() == form
        assert inserted.companions[0].scores() == scores
        assert values(inserted).keys() == weights.keys()
        for name, part in values(inserted).items():
            assert torch.equal(part, weights[name]), name


def test_a_state_of_another_method_is_refused() -> None:
    with training(method="increlora") as (run, _):
        state = run.state()
    with training(method="serial") as (run, _), pytest.raises(ValueError, match="something else"):
        run.load(state)


def test_the_step_that_needs_most_while_it_grows_is_watched() -> None:
    def peak(run: Training, every: bool) -> int:
        if every:
            run.meter._steps = frozenset(range(12))  # type: ignore[attr-defined]
        list(run.run())
        found = run.meter.peak()
        assert found is not None
        return found.live_bytes

    with training(method="increlora", steps=12, batch=lambda number: rows(number, width=4 + number % 5)) as (run, _):
        chosen = peak(run, every=False)
    with training(method="increlora", steps=12, batch=lambda number: rows(number, width=4 + number % 5)) as (run, _):
        assert peak(run, every=True) == chosen


def test_the_memory_that_is_foretold_is_that_of_the_largest_form() -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128}
    with torch.device("meta"):
        empty = AutoModelForSequenceClassification.from_config(config_of("bert", num_hidden_layers=4, **wide))
    layout = inspect_layout(empty.requires_grad_(False))
    setup = Setup(rows=8, tokens=7, padded=False, target="cpu")
    candidate = Candidate(insertions=(small(layout, "increlora"),), learning_rate=1e-2)
    foretold = StepPredictor(MetaModel(empty, layout), setup).predict(candidate).train_peak_bytes
    with training(method="increlora", steps=12, model=model_of("bert", **wide)) as (run, _):
        list(run.run())
        measured = run.meter.peak()
    assert measured is not None
    assert measured.live_bytes <= foretold <= 1.02 * measured.live_bytes


def test_a_trial_counts_what_is_trained_in_the_end(tmp_path: Path) -> None:
    evaluator = opened(spec_of(tmp_path, training={"steps": 12}))
    layout = evaluator._bench.layout
    candidate = Candidate(insertions=(small(layout, "increlora"),), learning_rate=1e-2)
    outcome, _ = run(evaluator, task_of(evaluator, tmp_path).model_copy(update={"candidate": candidate}))
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    measured = outcome.measurements
    assert measured is not None
    # Rank 4 on average in six matrices of 16 by 16.
    assert measured.trainable_parameters == 6 * 4 * (16 + 16 + 1) + layout.head_parameters
    assert measured.total_parameters == layout.parameters + 6 * 4 * (16 + 16 + 1)
    record = json.loads((tmp_path / "artefact-0" / "autopeft_adapter.json").read_text(encoding="utf-8"))
    (form,) = record["forms"]
    assert sum(form["ranks"].values()) == 6 * 4
    assert set(form["spares"].values()) == {0}
    assert 0.0 <= evaluator.score_test(tmp_path / "artefact-0")["accuracy"] <= 1.0
    assert evaluator._bench.untouched.differences() == []


# -- beside other things


def test_beside_another_method_it_grows_and_loads_again(tmp_path: Path) -> None:
    base = base_of("bert")
    serial = METHODS["serial"]
    modules = serial.default_modules(base.layout)
    other = Insertion(method="serial", layers=(0, 2), modules=modules, settings={**serial.facts.defaults, "size": 4})
    candidate = Candidate(insertions=(insertion_of(base), other), learning_rate=1e-2)
    inserted = insert(base.untouched, candidate, base.layout, 3, steps=8)
    train(base, inserted, 8, 5e-2)
    assert sum(module.rank for module in growing(inserted).values()) == 4 * 6
    live = logits_of(inserted.model, "bert")
    save_adapter(inserted, tmp_path / "adapter")
    loaded = load_adapter(base_of("bert").model, tmp_path / "adapter")
    assert torch.equal(logits_of(loaded, "bert"), live)


def test_an_adapter_saved_before_it_has_grown_predicts_the_same(tmp_path: Path) -> None:
    base = base_of("bert")
    inserted = put_in(base, insertion_of(base), steps=40)
    train(base, inserted, 6, 5e-2)
    assert any(module.spares for module in growing(inserted).values())
    live = logits_of(inserted.model, "bert")
    save_adapter(inserted, tmp_path / "adapter")
    assert torch.equal(logits_of(load_adapter(base_of("bert").model, tmp_path / "adapter"), "bert"), live)


def test_policies_and_pruning_say_that_they_cannot_have_it() -> None:
    base = base_of("bert")
    one = Candidate(insertions=(insertion_of(base),), learning_rate=1e-3)
    for name in POLICIES:
        assert "gradients of every layer" in POLICIES[name].problems(one, base.layout)[0].found, name
    for name, rules in CRITERIA.items():
        cut = one.model_copy(update={"pruning": Pruning(criterion=name, settings=rules.facts.defaults)})
        assert "increlora cannot be cut" in rules.problems(cut, base.layout)[0].found, name
