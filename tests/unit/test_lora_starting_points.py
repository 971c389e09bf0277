"""Relatives of LoRA start where their papers say, computed here once more with numpy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from importlib import util
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.methods import METHODS, Calibration
from autopeft.evaluate.outcomes import MethodError
from tests.contract.method_runs import Base, base_of, batches_of, inserted_in, train

RANK = 4


def insertion_of(base: Base, method: str, **settings: Any) -> Insertion:
    found = METHODS[method]
    return Insertion(
        method=method,
        layers=(0, 2),
        modules=("ffn.in", "ffn.out"),
        settings={**found.facts.defaults, "rank": RANK, **settings},
    )


def weights_of(base: Base, insertion: Insertion) -> dict[str, np.ndarray]:
    """The weights of the chosen modules, `[out, in]`, in double precision."""
    paths = base.layout.paths(insertion.layers, insertion.modules)
    return {path: base.model.get_submodule(path).weight.detach().double().numpy().copy() for path in paths}


def factors(base: Base, path: str) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """A, B, the scale and the frozen weight of a module that holds LoRA."""
    module = base.model.get_submodule(path)
    first, second = module.lora_A["default"].weight, module.lora_B["default"].weight
    frozen = module.get_base_layer().weight
    return (*(part.detach().double().numpy() for part in (first, second)), module.scaling["default"], numpy_of(frozen))


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def padded(kind: str = "bert") -> list[dict[str, torch.Tensor]]:
    """One batch whose rows end in 0, 1, 2 ... tokens of padding."""
    batch = {name: tensor.clone() for name, tensor in batches_of(kind, count=1, rows=6)[0].items()}
    for row in range(6):
        batch["attention_mask"][row, 8 - row :] = 0
        batch["input_ids"][row, 8 - row :] = 0
    return [batch]


def inputs_seen(base: Base, paths: list[str], batches: list[Mapping[str, torch.Tensor]]) -> dict[str, list[np.ndarray]]:
    """Inputs of the modules, `[tokens, in]` for each row, without padding."""
    seen: dict[str, list[np.ndarray]] = {path: [] for path in paths}
    handles, mask = [], batches[0]["attention_mask"].bool()
    for path in paths:

        def keep(module: Any, arguments: Any, output: Any, path: str = path) -> None:
            seen[path] += [numpy_of(row[real]) for row, real in zip(arguments[0], mask, strict=True)]

        handles.append(base.model.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"].bool()
            base.model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def put_in(base: Base, insertion: Insertion, batches: list[dict[str, torch.Tensor]]) -> Any:
    candidate = Candidate(insertions=(insertion,), learning_rate=1e-3)
    calibration = Calibration(batches, nullcontext)
    return insert(base.untouched, candidate, base.layout, 3, calibration=calibration)


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two))


@pytest.mark.parametrize("alpha_ratio", [1.0, 2.0])
def test_pissa_takes_the_largest_singular_values_out_of_the_weight(alpha_ratio: float) -> None:
    base = base_of("bert")
    insertion = insertion_of(base, "pissa", alpha_ratio=alpha_ratio)
    weights = weights_of(base, insertion)
    with inserted_in(base, insertion):
        for path, weight in weights.items():
            first, second, scale, frozen = factors(base, path)
            left, values, right = np.linalg.svd(weight, full_matrices=False)
            largest = left[:, :RANK] * values[:RANK] @ right[:RANK]
            np.testing.assert_allclose(scale * second @ first, largest, atol=1e-5)
            np.testing.assert_allclose(frozen, weight - largest, atol=1e-5)


@pytest.mark.parametrize("alpha_ratio", [1.0, 2.0])
def test_olora_starts_from_an_orthonormal_basis_of_the_weights_first_columns(alpha_ratio: float) -> None:
    base = base_of("bert")
    insertion = insertion_of(base, "olora", alpha_ratio=alpha_ratio)
    weights = weights_of(base, insertion)
    with inserted_in(base, insertion):
        for path, weight in weights.items():
            first, second, scale, frozen = factors(base, path)
            np.testing.assert_allclose(second.T @ second, np.eye(RANK), atol=1e-5)
            columns = weight[:, :RANK]
            np.testing.assert_allclose(second @ (second.T @ columns), columns, atol=1e-5)
            np.testing.assert_allclose(first, second.T @ weight, atol=1e-5)
            np.testing.assert_allclose(frozen + scale * second @ first, weight, atol=1e-5)


def test_mica_keeps_b_on_the_weakest_directions_of_the_weight() -> None:
    base = base_of("bert")
    insertion = insertion_of(base, "mica")
    weights = weights_of(base, insertion)
    with inserted_in(base, insertion, steps=3) as inserted:
        train(base, inserted, 3, 1e-2)
        for path, weight in weights.items():
            first, second, _, _ = factors(base, path)
            weakest = np.linalg.svd(weight, full_matrices=False)[0][:, -RANK:]
            np.testing.assert_allclose(second @ second.T, weakest @ weakest.T, atol=1e-4)
            assert np.abs(first).max() > 1e-3


def test_kasa_drops_the_smallest_singular_values() -> None:
    base = base_of("bert")
    insertion = insertion_of(base, "kasa")
    weights = weights_of(base, insertion)
    with inserted_in(base, insertion):
        for path, weight in weights.items():
            left, values, right = np.linalg.svd(weight, full_matrices=False)
            kept = len(values) - RANK
            *_, frozen = factors(base, path)
            np.testing.assert_allclose(frozen, left[:, :kept] * values[:kept] @ right[:kept], atol=1e-5)


def test_eva_starts_along_the_main_directions_of_the_inputs_without_padding() -> None:
    base = base_of("bert")
    insertion = insertion_of(base, "eva")
    paths = list(base.layout.paths(insertion.layers, insertion.modules))
    seen = inputs_seen(base, paths, padded())
    put_in(base, insertion, padded())
    for path in paths:
        first, second, _, _ = factors(base, path)
        rows = np.concatenate(seen[path])
        right = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:RANK]
        np.testing.assert_allclose(first @ first.T, np.eye(RANK), atol=1e-4)
        np.testing.assert_allclose(first @ right.T @ right, first, atol=1e-2)
        assert not second.any()


def test_corda_starts_from_the_decomposition_that_the_covariance_of_the_inputs_orients() -> None:
    base = base_of("bert")
    insertion = insertion_of(base, "corda", alpha_ratio=2.0)
    weights = weights_of(base, insertion)
    seen = inputs_seen(base, list(weights), padded())
    put_in(base, insertion, padded())
    for path, weight in weights.items():
        first, second, scale, frozen = factors(base, path)
        scaled = [rows / abs(rows.max()) for rows in seen[path]]
        covariance = sum(rows.T @ rows for rows in scaled) / len(scaled)
        covariance += 0.01 * np.diag(covariance).mean() * np.eye(len(covariance))
        left, values, right = np.linalg.svd(weight @ covariance, full_matrices=False)
        oriented = left[:, :RANK] * values[:RANK] @ right[:RANK] @ np.linalg.inv(covariance)
        size = np.abs(oriented).max()
        np.testing.assert_allclose(scale * second @ first / size, oriented / size, atol=2e-3)
        np.testing.assert_allclose(frozen + scale * second @ first, weight, atol=1e-5)


def test_lora_gas_first_step_goes_where_full_fine_tuning_goes() -> None:
    """Eq. 9: a step of A and B moves the weight by G A'A + B B'G; A spans G's first right vectors, B the next left."""
    found = {}
    for method in ("lora-ga", "lora"):
        base = base_of("bert")
        insertion = insertion_of(base, method)
        paths = list(base.layout.paths(insertion.layers, insertion.modules))
        chosen = [base.model.get_submodule(path).weight.requires_grad_(True) for path in paths]
        losses = [base.model(**batch).loss for batch in batches_of("bert")]
        slopes = dict(zip(paths, torch.autograd.grad(torch.stack(losses).mean(), chosen), strict=True))
        base.model.requires_grad_(False)
        put_in(base, insertion, batches_of("bert"))
        found[method] = []
        for path in paths:
            slope = numpy_of(slopes[path])
            first, second, _, _ = factors(base, path)
            left, values, right = np.linalg.svd(slope)
            if method == "lora-ga":
                np.testing.assert_allclose(first.T @ first, right[:RANK].T @ right[:RANK], atol=1e-3)
                next_left = left[:, RANK : 2 * RANK]
                np.testing.assert_allclose(next_left @ next_left.T @ second, second, atol=1e-3 * np.abs(second).max())
            best = np.linalg.norm(values[:RANK]) / np.linalg.norm(values)
            step = slope @ first.T @ first + second @ second.T @ slope
            found[method].append(cosine(step, slope) / best)
    assert min(found["lora-ga"]) > 0.95
    assert min(found["lora-ga"]) > max(found["lora"]) + 0.05


@pytest.mark.parametrize("method", ["eva", "corda", "lora-ga"])
def test_a_start_from_data_without_rows_is_refused_by_name(method: str) -> None:
    base = base_of("bert")
    with pytest.raises(MethodError, match=f"^{method}: .*rows"):
        put_in(base, insertion_of(base, method), [])


def test_eva_refuses_fewer_tokens_than_directions() -> None:
    base = base_of("bert")
    short = [
        {name: tensor[:1, :3] if tensor.dim() == 2 else tensor[:1] for name, tensor in batches_of("bert")[0].items()}
    ]
    with pytest.raises(MethodError, match="EVA of rank 4 needs training rows"):
        put_in(base, insertion_of(base, "eva"), short)


def test_corda_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("bert")
    insertion = insertion_of(base, "corda")
    assert METHODS["corda"].problems(insertion, base.layout) == []
    found = util.find_spec
    lacking = lambda name, *rest: None if name == "attr" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr("autopeft.evaluate.methods.lora_data.find_spec", lacking)
    assert "pip install attrs" in str(METHODS["corda"].problems(insertion, base.layout)[0])


@pytest.mark.parametrize(
    ("kind", "method", "settings", "text"),
    [
        ("bert", "lora-ga", {"rank": 9}, "9 is larger than half the smaller side of ffn"),
        ("bert", "kasa", {"rank": 16}, "16 leaves no singular value of ffn"),
        ("gpt2", "kasa", {}, "held transposed (Conv1D) are not taken"),
        ("gpt2", "olora", {}, "held transposed (Conv1D) are not taken"),
        ("gpt2", "bd-lora", {}, "held transposed (Conv1D) are not taken"),
        ("bert", "bd-lora", {"rank": 3}, "2 does not divide the rank 3"),
        ("bert", "bd-lora", {"rank": 16, "nblocks": 16}, "16 does not divide 24, the width of ffn"),
        ("bert", "velora", {"num_groups": 17}, "17 is larger than the 16 inputs of ffn.in"),
        ("bert", "adalora", {"rank": 1}, "1 is not allowed"),
    ],
)
def test_what_a_model_cannot_take_is_said_before_training(
    kind: str, method: str, settings: dict[str, Any], text: str
) -> None:
    base = base_of(kind)
    found = METHODS[method].problems(insertion_of(base, method, **settings), base.layout)
    assert text in "\n".join(map(str, found))
