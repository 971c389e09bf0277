"""Bottleneck adapters stand where their papers put them, compute what these say, and leave nothing behind."""

import copy
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import Role
from autopeft.evaluate.insertion import Inserted, insert, removed_afterwards
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.methods.bottleneck_modules import Bottleneck
from autopeft.evaluate.untouched import Untouched
from tests.unit.evaluate_models import CONFIGS, batch, classifier_of

BOTH = ("attention.output", "ffn.out")
SCALE = 2.5


def insertion_of(method: str, layers: tuple[int, ...], roles: tuple[str, ...] = BOTH, **settings: Any) -> Insertion:
    given = {**METHODS[method].facts.defaults, "size": 3, "scale": SCALE, **settings}
    return Insertion(method=method, layers=layers, modules=roles, settings=given)


@contextmanager
def put_into(model: Any, *insertions: Insertion) -> Any:
    untouched, layout = Untouched(model), inspect_layout(model)
    for insertion in insertions:
        assert METHODS[insertion.method].problems(insertion, layout) == []
    with removed_afterwards(untouched):
        yield insert(untouched, Candidate(insertions=insertions, learning_rate=1e-3), layout, seed=5)
    assert untouched.differences() == []


def adapters_of(model: Any) -> list[Bottleneck]:
    return [module for module in model.modules() if isinstance(module, Bottleneck)]


def shake(model: Any) -> list[Bottleneck]:
    """Give every adapter weights that say something; in the order of the layers and places."""
    torch.manual_seed(7)
    found = adapters_of(model)
    for adapter in found:
        for part in adapter.parameters():
            nn.init.normal_(part, std=0.3)
    return found


def said(model: Any, seed: int = 0) -> torch.Tensor:
    inputs = {name: tensor for name, tensor in batch(seed).items() if name != "labels"}
    model.eval()
    with torch.no_grad():
        return model(**inputs).logits


def watched(model: Any, paths: list[str]) -> dict[str, list[torch.Tensor]]:
    """What modules were given in one forward pass, what they said, and what the hooks made of that."""
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in paths}

    def first(path: str) -> Any:
        return lambda _, arguments, output: seen[path].extend((arguments[0], output))

    def last(path: str) -> Any:
        return lambda _, arguments, output: seen[path].append(output)

    modules = [(path, model.get_submodule(path)) for path in paths]
    handles = [module.register_forward_hook(first(path), prepend=True) for path, module in modules]
    handles += [module.register_forward_hook(last(path)) for path, module in modules]
    said(model)
    for handle in handles:
        handle.remove()
    return seen


def formula(adapter: Bottleneck, x: torch.Tensor, function: Any = torch.relu) -> torch.Tensor:
    """The papers' equation, from the weights alone."""
    inner = function(x @ adapter.down.weight.T + adapter.down.bias)
    return inner @ adapter.up.weight.T + adapter.up.bias


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_serial_adapter_adds_to_what_the_sublayer_says(kind: str) -> None:
    model = classifier_of(kind)
    layer = inspect_layout(model).layers[1]
    paths = [layer.module(role).path for role in BOTH]
    with torch.no_grad(), put_into(model, insertion_of("serial", (1,))):
        adapters = shake(model)
        seen = watched(model, paths)
        assert len(adapters) == 2
        for path, adapter in zip(paths, adapters, strict=True):
            _, plain, changed = seen[path]
            assert torch.allclose(changed, plain + SCALE * formula(adapter, plain), atol=1e-5)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_parallel_adapter_is_given_what_the_sublayer_is_given(kind: str) -> None:
    model = classifier_of(kind)
    layer = inspect_layout(model).layers[1]
    ends = [layer.module(role).path for role in BOTH]
    entrances = [(layer.module(Role.QUERY) or layer.module(Role.QKV)).path, layer.module(Role.FFN_IN).path]
    with torch.no_grad(), put_into(model, insertion_of("parallel", (1,))):
        adapters = shake(model)
        seen = watched(model, [*ends, *entrances])
        assert len(adapters) == 2
        for end, entrance, adapter in zip(ends, entrances, adapters, strict=True):
            given, (_, plain, changed) = seen[entrance][0], seen[end]
            if gate := layer.module(Role.FFN_GATE):
                assert torch.equal(watched(model, [gate.path])[gate.path][0], seen[entrances[1]][0])
            assert torch.allclose(changed, plain + SCALE * formula(adapter, given), atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_the_nonlinearity_is_the_one_that_is_asked_for(activation: str) -> None:
    functions = {"relu": torch.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh}
    adapter = Bottleneck(6, 4, 3, 1.0, activation)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(adapter(x), formula(adapter, x, functions[activation]), atol=1e-6)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_untrained_adapters_change_no_bit_and_their_count_is_the_formula(kind: str) -> None:
    model = classifier_of(kind)
    layout, before = inspect_layout(model), said(model)
    both = (insertion_of("serial", (0, 2)), insertion_of("parallel", (0, 2)))
    with put_into(model, *both) as inserted:
        assert torch.equal(said(model), before)
        found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
        assert found == sum(METHODS[one.method].trainable(one, layout) for one in both)
        per_adapter = 3 * (16 + 16) + 3 + 16
        assert found == 2 * 2 * 2 * per_adapter
    assert torch.equal(said(model), before)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_at_one_place_the_order_of_the_two_does_not_matter(kind: str) -> None:
    model, found = classifier_of(kind), []
    one, two = insertion_of("serial", (0, 1)), insertion_of("parallel", (0, 1))
    for pair in ((one, two), (two, one)):
        with put_into(model, *pair):
            for adapter in adapters_of(model):
                nn.init.constant_(adapter.up.weight, 0.01 * adapter.down.weight.shape[0])
                nn.init.constant_(adapter.down.weight, 0.1)
            found.append(said(model))
    assert torch.allclose(*found, atol=1e-6)


def gradients_of(inserted: Inserted) -> list[torch.Tensor]:
    inserted.model(**batch()).loss.backward()
    found = [part.grad.clone() for part in inserted.trainable() if part.grad is not None]
    for part in inserted.trainable():
        part.grad = None
    return found


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_recomputed_layers_give_the_same_gradients_and_hold_nothing(kind: str, reentrant: bool) -> None:
    model = classifier_of(kind)
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with put_into(model, insertion_of("parallel", (0, 1, 2)), insertion_of("serial", (0, 2))) as inserted:
        adapters = shake(model)
        model.train()
        plain = gradients_of(inserted)
        assert all(not adapter._taken for adapter in adapters)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        recomputed = gradients_of(inserted)
        assert all(not adapter._taken for adapter in adapters), "an input is held"
        assert len(plain) == len(recomputed) > 12
        for one, two in zip(plain, recomputed, strict=True):
            assert torch.allclose(one, two, atol=1e-6)
        if reentrant:
            model.disable_input_require_grads()
        model.gradient_checkpointing_disable()


def test_a_copy_of_the_model_has_adapters_of_its_own() -> None:
    model = classifier_of("bert")
    with put_into(model, insertion_of("parallel", (0,)), insertion_of("serial", (0,))):
        shake(model)
        before, copied = said(model), copy.deepcopy(model)
        adapters_of(model)[0].up.bias.data.add_(1)
        assert torch.equal(said(copied), before)
        assert not torch.equal(said(model), before)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_base_in_half_precision_has_adapters_in_float32(kind: str, autocast: bool) -> None:
    model = classifier_of(kind).to(torch.bfloat16)
    with put_into(model, insertion_of("parallel", (0, 1, 2)), insertion_of("serial", (0, 1, 2))):
        adapters = shake(model)
        assert {part.dtype for adapter in adapters for part in adapter.parameters()} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert torch.isfinite(said(model)).all()


def test_a_place_that_is_no_end_of_a_sublayer_is_refused_by_name() -> None:
    layout = inspect_layout(classifier_of("llama"))
    for method in ("serial", "parallel"):
        problems = METHODS[method].problems(insertion_of(method, (0,), ("attention.query", "ffn.out")), layout)
        assert [problem.where for problem in problems] == ["modules"]
        assert "attention.query" in problems[0].found
        assert problems[0].allowed == "attention.output, ffn.out"


def test_both_may_act_where_lora_acts_and_not_twice_where_they_act_themselves() -> None:
    layout = inspect_layout(classifier_of("bert"))
    serial = METHODS["serial"].occupied(insertion_of("serial", (0,), ("ffn.out",)), layout)
    parallel = METHODS["parallel"].occupied(insertion_of("parallel", (0,), ("ffn.out",)), layout)
    lora = Insertion(method="lora", layers=(0,), modules=("ffn.out",), settings=METHODS["lora"].facts.defaults)
    assert not serial & parallel
    assert not (serial | parallel) & METHODS["lora"].occupied(lora, layout)
    assert serial & METHODS["serial"].occupied(insertion_of("serial", (0, 1), ("ffn.out",)), layout)
