"""SPT's sensitivity is what autograd says, and its budget goes where a brute-force count puts it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS, Calibration
from autopeft.evaluate.methods.allocation import Sensitive, Targets, most_sensitive, needed, ranks, targets
from autopeft.evaluate.methods.method import modules_of
from autopeft.evaluate.methods.sensitivity import sensitivity, total_sensitivity
from autopeft.evaluate.methods.spt import budget_of
from autopeft.evaluate.methods.spt_modules import Entries
from autopeft.evaluate.outcomes import MethodError
from autopeft.evaluate.untouched import Untouched
from tests.contract.method_runs import Base, base_of, batches_of, calibration_of, inserted_in, logits_of, put_in, train
from tests.unit.evaluate_models import batch, classifier_of, config_of
from tests.unit.model_state import assert_same, state_of

KINDS = ("bert", "llama", "gpt2")
NO_ROWS = Calibration((), nullcontext)


def insertion_of(base: Base, method: str = "spt-lora", **settings: Any) -> Insertion:
    """In query, value and feed-forward modules, or those that fuse them."""
    modules = ("attention.qkv", "ffn.out") if base.kind == "gpt2" else ("attention.query", "attention.value", "ffn.out")
    given = {**METHODS[method].facts.defaults, "rank": 2, **settings}
    return Insertion(method=method, layers=(0, 1, 2), modules=modules, settings=given)


def paths_of(base: Base, insertion: Insertion) -> dict[str, bool]:
    return {module.path: module.transposed for module in modules_of(insertion, base.layout)}


def slow_sensitivity(base: Base, paths: dict[str, bool]) -> dict[str, torch.Tensor]:
    """In double precision, all weights of one batch at once."""
    twin = base_of(base.kind).model.double()
    weights = {path: twin.get_submodule(path).weight.requires_grad_(True) for path in paths}
    found = {path: torch.zeros_like(weight) for path, weight in weights.items()}
    for one in batches_of(base.kind):
        gradients = torch.autograd.grad(twin(**one).loss, list(weights.values()))
        for path, gradient in zip(weights, gradients, strict=True):
            found[path] += gradient.square()
    return {path: values.T if paths[path] else values for path, values in found.items()}


# -- the sensitivity


@pytest.mark.parametrize("kind", KINDS)
def test_sensitivity_is_the_sum_of_squared_gradients_and_leaves_no_trace(kind: str) -> None:
    base = base_of(kind)
    base.model.train()
    base.model.get_submodule(base.layout.layers[0].path).eval()
    first = next(base.model.parameters()).requires_grad_(True)
    base.model(**batches_of(kind)[0])  # sets the kind of the problem in the configuration
    paths, before = paths_of(base, insertion_of(base)), state_of(base.model)
    stream = torch.get_rng_state()
    found = sensitivity(base.model, paths, calibration_of(kind))
    assert_same(before, state_of(base.model))
    assert first.requires_grad
    assert not any(part._post_accumulate_grad_hooks for part in base.model.parameters())
    assert torch.equal(torch.get_rng_state(), stream)
    slow = slow_sensitivity(base, paths)
    totals = total_sensitivity(base.model, paths, calibration_of(kind))
    for path in paths:
        scale = slow[path].max().item()
        torch.testing.assert_close(found[path].double(), slow[path], rtol=1e-3, atol=1e-6 * scale)
        assert totals[path] == pytest.approx(slow[path].sum().item(), rel=1e-4)
    again = sensitivity(base.model, paths, calibration_of(kind))
    assert all(torch.equal(again[path], found[path]) for path in paths)


def test_no_two_gradients_of_the_base_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("bert")
    alive: list[int] = []
    square = torch.Tensor.square_

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(sum(part.grad is not None for part in base.model.parameters()))
        return square(tensor)

    monkeypatch.setattr(torch.Tensor, "square_", watched)
    paths = paths_of(base, insertion_of(base))
    sensitivity(base.model, paths, calibration_of("bert"))
    assert alive == [0] * len(paths) * 2  # the one that is looked at is taken away from its weight first


def test_a_broken_pass_leaves_the_model_as_it_was() -> None:
    base = base_of("bert")
    base.model(**batches_of("bert")[0])
    before = state_of(base.model)
    rows = batches_of("bert")
    rows[1]["input_ids"] = rows[1]["input_ids"] + 10_000
    with pytest.raises(IndexError):
        sensitivity(base.model, paths_of(base, insertion_of(base)), Calibration(rows, nullcontext))
    assert_same(before, state_of(base.model))


@pytest.mark.parametrize("method", ["spt-lora", "spt-ranks"])
def test_without_training_rows_nothing_can_be_decided(method: str) -> None:
    base = base_of("bert")
    candidate = Candidate(insertions=(insertion_of(base, method),), learning_rate=1e-3)
    with pytest.raises(MethodError, match="training rows"):
        insert(base.untouched, candidate, base.layout, 0, calibration=NO_ROWS)


# -- the allocation


def brute_targets(maps: list[np.ndarray], structured: list[int], ratio: float, budget: int) -> Any:
    """Every tau from none to all, all weights ordered by value, matrix and place; the last one that can be paid."""
    weights = [(matrix, place, value) for matrix, one in enumerate(maps) for place, value in enumerate(one.flat)]
    order = sorted((-value, matrix, place) for matrix, place, value in weights if value > 0)
    counts, last = [0] * len(maps), 0
    for tau, (_, matrix, _) in enumerate(order, 1):
        counts[matrix] += 1
        pairs = zip(counts, structured, strict=True)
        if sum(cost if count * ratio >= cost else count for count, cost in pairs) <= budget:
            last = tau
    chosen: dict[int, list[int]] = {}
    for _, matrix, place in order[:last]:
        chosen.setdefault(matrix, []).append(place)
    low_rank = {one for one, places in chosen.items() if len(places) * ratio >= structured[one]}
    return low_rank, {one: sorted(places) for one, places in chosen.items() if one not in low_rank}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ratio", [1.0, 3.0, 10.0])
def test_the_allocation_is_that_of_a_brute_force_count(seed: int, ratio: float) -> None:
    draw = np.random.default_rng(seed)
    shapes = [(4, 6), (6, 4), (5, 5), (2, 12)]
    maps = [np.abs(draw.normal(size=shape) * 10 ** draw.uniform(-1, 1)).astype(np.float32) for shape in shapes]
    if seed % 2:  # equal ones, and zeros
        maps = [np.round(one, 0).astype(np.float32) for one in maps]
    structured = [2 * sum(shape) for shape in shapes]
    lists = [most_sensitive(one, needed(cost, ratio)) for one, cost in zip(maps, structured, strict=True)]
    for budget in (1, 5, 13, 20, 34, 60, sum(structured)):
        found = targets(lists, structured, ratio, budget)
        low_rank, rest = brute_targets(maps, structured, ratio, budget)
        assert set(found.low_rank) == low_rank
        assert {one: places.tolist() for one, places in found.entries.items()} == rest
        spent = sum(structured[one] for one in found.low_rank) + sum(map(len, found.entries.values()))
        assert spent <= budget


def test_the_most_sensitive_weights_come_in_order_and_zeros_never() -> None:
    values = np.array([[0.0, 3.0, 1.0], [3.0, 2.0, 1.0]], dtype=np.float32)
    assert most_sensitive(values, 3).entries.tolist() == [1, 3, 4]
    assert most_sensitive(values, 4).entries.tolist() == [1, 3, 4, 2]  # of equal ones the first
    assert most_sensitive(values, 9).values.tolist() == [3.0, 3.0, 2.0, 1.0, 1.0]
    assert most_sensitive(np.zeros((2, 2), dtype=np.float32), 3).entries.size == 0
    assert needed(64, 10.0) == 7
    assert needed(60, 10.0) == 6
    empty = Sensitive(np.empty(0), np.empty(0, dtype=np.int64))
    assert targets([empty, empty], [4, 4], 2.0, 9) == Targets(frozenset(), {})


@pytest.mark.parametrize("seed", range(10))
def test_ranks_are_in_proportion_to_sensitivity_and_within_the_budget(seed: int) -> None:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(2, 9))
    given = [int(one) for one in draw.integers(0, 1000, size)]
    given[0] += 1
    even = [7] * size
    budget = 7 * int(draw.integers(1, 60)) + int(draw.integers(0, 7))
    found = ranks(given, even, [10**6] * size, budget)
    assert sum(found) == budget // 7
    # Sainte-Laguë: some divisor rounds every share to these ranks.
    lowest = max(Fraction(2 * rank - 1, 2 * one) for rank, one in zip(found, given, strict=True) if rank)
    highest = min(Fraction(2 * rank + 1, 2 * one) for rank, one in zip(found, given, strict=True) if one)
    assert lowest <= highest
    uneven, most = [int(one) for one in draw.integers(3, 20, size)], [int(one) for one in draw.integers(1, 6, size)]
    found = ranks(given, uneven, most, budget)
    spent = sum(rank * cost for rank, cost in zip(found, uneven, strict=True))
    assert spent <= budget
    for rank, cost, limit, one in zip(found, uneven, most, given, strict=True):
        assert rank <= limit
        assert spent + cost > budget or rank == limit or one == 0, "a rank more could have been paid"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [0.1, 0.5])
def test_what_is_trained_is_what_a_brute_force_count_says_of_slow_gradients(kind: str, budget: float) -> None:
    base = base_of(kind)
    insertion = insertion_of(base, budget=budget)
    paths = paths_of(base, insertion)
    maps = [values.float().numpy() for values in slow_sensitivity(base, paths).values()]
    modules = modules_of(insertion, base.layout)
    structured = [2 * (module.in_features + module.out_features) for module in modules]
    low_rank, rest = brute_targets(maps, structured, 10.0, budget_of(insertion, base.layout))
    with inserted_in(base, insertion) as inserted:
        form = inserted.companions[0].form()
        found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
        assert form["low_rank"] == [modules[one].path for one in sorted(low_rank)]
        assert form["entries"] == {modules[one].path: len(places) for one, places in rest.items()}
        assert found == sum(structured[one] for one in low_rank) + sum(map(len, rest.values()))
        assert found <= int(budget * sum(structured))
        live = [module for module in base.model.modules() if isinstance(module, Entries)]
        assert [one.get_buffer("entries").tolist() for one in live] == [rest[one] for one in sorted(rest)]


@pytest.mark.parametrize("method", ["spt-lora", "spt-ranks"])
def test_the_budget_goes_to_the_matrices_that_matter(method: str) -> None:
    base = base_of("bert")
    with torch.no_grad():  # whatever attention says in layers 0 and 2 is multiplied by nothing
        for index in (0, 2):
            base.model.bert.encoder.layer[index].attention.output.dense.weight.zero_()
    modules = ("attention.query", "attention.value")
    insertion = insertion_of(base, method, budget=0.5, rank=4).model_copy(update={"modules": modules})
    with inserted_in(base, insertion) as inserted:
        assert inserted.module_names
        assert all(".layer.1." in path for path in inserted.module_names)


def test_a_budget_that_buys_nothing_is_refused_with_what_would() -> None:
    base = base_of("bert")
    for method, budget in (("spt-lora", 0.001), ("spt-ranks", 0.05)):
        (problem,) = METHODS[method].problems(insertion_of(base, method, budget=budget), base.layout)
        assert problem.where == "budget"
        least = float(problem.allowed.split(" to ")[0])
        assert METHODS[method].problems(insertion_of(base, method, budget=1.01 * least), base.layout) == []


# -- what is trained


def test_the_sparse_product_has_the_gradients_of_a_dense_one() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 4).double().requires_grad_(False)
    beside = Entries(linear, 5, 4, transposed=False, entries=torch.tensor([0, 3, 7, 19]))
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    beside.values = nn.Parameter(values.detach().clone())

    def dense(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        update = torch.zeros(20, dtype=torch.float64)
        for place, value in zip((0, 3, 7, 19), values, strict=True):
            update = update + value * nn.functional.one_hot(torch.tensor(place), 20)
        return nn.functional.linear(x, linear.weight + update.view(4, 5), linear.bias)

    found, expected = linear(x), dense(x, values)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    mine = torch.autograd.grad((found * weights).sum(), [x, beside.values])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, values])
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_matrix_without_lora_the_chosen_weights_alone_move(kind: str) -> None:
    base = base_of(kind)
    old = {path: base.model.get_submodule(path).weight.detach().clone() for path in paths_of(base, insertion_of(base))}
    with inserted_in(base, insertion_of(base, budget=0.1), 4) as inserted:
        train(base, inserted, 4, 1e-2)
        form = inserted.companions[0].form()
        assert form["entries"]
        chosen = {
            path: module.get_buffer("entries").tolist()
            for path, module in zip(
                form["entries"], (one for one in base.model.modules() if isinstance(one, Entries)), strict=True
            )
        }
        merged = inserted.merged()
        for path, before in old.items():
            moved = merged.get_submodule(path).weight - before
            moved = moved.T if paths_of(base, insertion_of(base))[path] else moved
            if path not in form["low_rank"]:
                assert torch.nonzero(moved.reshape(-1)).flatten().tolist() == chosen.get(path, [])
    assert base.untouched.differences() == []


def test_the_allocation_is_loaded_and_not_decided_again(tmp_path: Path) -> None:
    base = base_of("bert")
    inserted = put_in(base, insertion_of(base, budget=0.3), steps=4)
    train(base, inserted, 4, 1e-2)
    live, form = logits_of(inserted.model, "bert"), inserted.companions[0].form()
    save_adapter(inserted, tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "autopeft_adapter.json").read_text(encoding="utf-8"))
    assert record["forms"] == [form]
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    sizes = [len(values) for name, values in saved.items() if name.endswith(".entries")]
    assert sorted(sizes) == sorted(form["entries"].values())
    other = base_of("bert", seed=5)  # whose own sensitivities would be others
    load_adapter(other.model, tmp_path / "adapter")
    places = [module.get_buffer("entries") for module in other.model.modules() if isinstance(module, Entries)]
    assert all(any(torch.equal(one, values) for values in saved.values()) for one in places)
    assert torch.equal(logits_of(load_adapter(base_of("bert").model, tmp_path / "adapter"), "bert"), live)


def test_uneven_ranks_are_a_rank_pattern_of_peft_with_one_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = type(classifier_of("bert"))(config_of("bert", num_hidden_layers=12)).eval().requires_grad_(False)
    layout = inspect_layout(model)
    given = {**METHODS["spt-ranks"].facts.defaults, "rank": 4, "budget": 0.6}
    modules = ("attention.query", "attention.value")
    insertion = Insertion(method="spt-ranks", layers=tuple(range(12)), modules=modules, settings=given)
    calibration = Calibration([batch(seed) for seed in range(3)], nullcontext)
    candidate = Candidate(insertions=(insertion,), learning_rate=1e-2)
    inserted = insert(Untouched(model), candidate, layout, 0, calibration=calibration)
    save_adapter(inserted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    pattern = config["rank_pattern"]
    assert len(set(pattern.values())) > 1
    assert sorted(pattern) == sorted(inserted.module_names)
    for path in pattern:  # layer 1 is not layer 11
        layer = model.get_submodule(path)
        assert layer.r["default"] == pattern[path] == len(layer.lora_A["default"].weight)
        assert layer.scaling["default"] == 2.0
    found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
    assert found == sum(32 * rank for rank in pattern.values()) <= budget_of(insertion, layout)
    assert found + 32 > budget_of(insertion, layout)
