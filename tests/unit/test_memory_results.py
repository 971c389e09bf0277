"""Results on `meta` that are remembered are those that torch computes, and share memory with nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory import emulation
from autopeft.evaluate.memory.results import Results
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import METHODS
from tests.unit.memory_models import model_of

ATEN = torch.ops.aten


def there(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


OPERATIONS: dict[str, tuple[Any, Callable[[], tuple[Any, ...]]]] = {
    "sum": (ATEN.add.Tensor, lambda: (there(3, 1), there(4))),
    "two dtypes": (ATEN.mul.Tensor, lambda: (there(3, dtype=torch.bfloat16), there(3))),
    "whole number": (ATEN.mul.Tensor, lambda: (there(3, dtype=torch.int64), 2)),
    "fraction": (ATEN.mul.Tensor, lambda: (there(3, dtype=torch.int64), 2.0)),
    "truth": (ATEN.mul.Tensor, lambda: (there(3, dtype=torch.bool), True)),
    "turned": (ATEN.neg.default, lambda: (there(3, 5).t(),)),
    "product": (ATEN.mm.default, lambda: (there(3, 5), there(7, 5).t())),
    "several": (ATEN.native_layer_norm.default, lambda: (there(2, 8), [8], there(8), there(8), 1e-5)),
    "joined": (ATEN.cat.default, lambda: ([there(2, 3), there(5, 3)],)),
    "in place": (ATEN.add_.Tensor, lambda: (there(3, 4), there(4))),
    "view": (ATEN.view.default, lambda: (there(3, 4), [12])),
    "hidden view": (ATEN._unsafe_view.default, lambda: (there(3, 4), [12])),
    "many in place": (ATEN._foreach_mul_.Scalar, lambda: ([there(3), there(4)], 2.0)),
}


def described(result: Any, args: tuple[Any, ...]) -> Any:
    """Shape, strides, dtype and size of each tensor, and which argument it shares memory with."""
    if isinstance(result, tuple | list):
        return [described(one, args) for one in result]
    if not isinstance(result, torch.Tensor):
        return result
    storage = result.untyped_storage()
    shares = [
        place
        for place, one in enumerate(args)
        if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata == storage._cdata
    ]
    is_argument = any(result is one for one in args)
    return (result.shape, result.stride(), result.dtype, storage.nbytes(), shares, is_argument)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_result_that_is_remembered_is_the_one_that_is_computed(name: str) -> None:
    func, make = OPERATIONS[name]
    results = Results()
    for _ in range(3):
        args, same = make(), make()
        assert described(results(func, args, {}), args) == described(func(*same), same)


def test_equal_operations_are_computed_once_and_every_result_has_memory_of_its_own() -> None:
    results = Results()
    found = [results(ATEN.add.Tensor, (there(3), there(3)), {}) for _ in range(4)]
    assert (results.computed, results.recalled) == (1, 3)
    assert len({one.untyped_storage()._cdata for one in found}) == 4


def test_what_has_values_is_computed_each_time() -> None:
    results = Results()
    count = torch.tensor(1.0)
    for _ in range(3):
        results(ATEN.add_.Tensor, (count, 1), {})
        results(ATEN._foreach_add_.Scalar, ([count], 1), {})
    assert count.item() == 7
    assert results.recalled == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_has_the_births_and_deaths_that_it_has_with_nothing_remembered(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama", 2, torch.bfloat16, "meta")
    layout = inspect_layout(model)
    lora = Insertion(
        method="lora",
        layers=(0, 1),
        modules=METHODS["lora"].default_modules(layout),
        settings={**METHODS["lora"].facts.defaults, "dropout": 0.1},
    )
    candidate = Candidate(insertions=(lora,), learning_rate=1e-3)
    setup = Setup(4, 11, lower=torch.bfloat16, checkpointing=checkpointing)
    meta = MetaModel(model, layout)
    remembering = [meta.timeline(candidate, setup) for _ in range(2)]
    monkeypatch.setattr(emulation, "_RESULTS", lambda func, args, kwargs: func(*args, **kwargs))
    plain = meta.timeline(candidate, setup)
    assert plain.events == remembering[0].events == remembering[1].events
