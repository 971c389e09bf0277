"""Methods that train parameters of the base itself: which ones, in which precision, beside what."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.insertion import insert, removed_afterwards
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.untouched import Untouched
from tests.unit.evaluate_models import CONFIGS, batch, classifier_of

NAMES = ("bitfit", "layernorm", "full-layers", "full")
WITHOUT_BIASES = ("llama", "gemma", "mistral")


def insertion_of(method: str, layers: tuple[int, ...] = (0, 1, 2)) -> Insertion:
    return Insertion(method=method, layers=layers, modules=(), settings={})


@contextmanager
def put_into(model: Any, *insertions: Insertion) -> Any:
    untouched, layout = Untouched(model), inspect_layout(model)
    with removed_afterwards(untouched):
        yield insert(untouched, Candidate(insertions=insertions, learning_rate=1e-3), layout, seed=5)
    assert untouched.differences() == []


def moved_by_a_step(model: Any, inserted: Any, learning_rate: float = 1e-2, autocast: bool = False) -> set[str]:
    """Names of the base's parameters that one optimiser step changes, the head's left out."""
    layout = inserted.layout
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    optimizer = torch.optim.AdamW(inserted.trainable(), lr=learning_rate, weight_decay=0.0)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        inserted.model(**batch()).loss.backward()
    optimizer.step()
    heads = tuple(f"{path}." for path in layout.head_paths)
    return {
        name
        for name, part in model.named_parameters()
        if not torch.equal(part, before[name]) and not name.startswith(heads)
    }


def expected_names(method: str, layout: ModelLayout, model: Any, layers: tuple[int, ...]) -> set[str]:
    """By the names and the types of the untouched model's modules."""
    heads = tuple(f"{path}." for path in layout.head_paths)
    blocks = tuple(f"{layout.layers[index].path}." for index in layers)
    every = [name for name, _ in model.named_parameters()]
    if method == "full":
        return {name for name in every if not name.startswith(heads)}
    inside = [name for name in every if name.startswith(blocks)]
    if method == "bitfit":
        return {name for name in inside if name.endswith(".bias")}
    if method == "layernorm":
        return {
            name for name in inside if "norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()
        }
    return set(inside)


def without_gradient(model: Any, names: set[str]) -> set[str]:
    """Key biases shift all scores of a query alike, so that softmax gives them no gradient."""
    return {name for name in names if "key" in name.split(".")[-2] or "k_" in name.split(".")[-2]}


@pytest.mark.parametrize(
    ("layers", "said"),
    [((0, 1, 2), "no layer of this model has any bias"), ((0, 2), "layer 0, 2 has no bias")],
)
def test_a_model_without_biases_is_named_as_such_and_not_layer_by_layer(layers: tuple[int, ...], said: str) -> None:
    (problem,) = METHODS["bitfit"].problems(insertion_of("bitfit", layers), inspect_layout(classifier_of("llama")))
    assert problem.found == f"bitfit finds nothing to train: {said}"


@pytest.mark.parametrize("method", ["layernorm", "ln-tuning", "prefix"])
def test_what_every_layer_lacks_is_said_of_the_model(method: str) -> None:
    layout = inspect_layout(classifier_of("bert"))
    bare = [layer.model_copy(update={"norms": (), "attention": ""}) for layer in layout.layers]
    insertion = Insertion(method=method, layers=(0, 1, 2), modules=(), settings=METHODS[method].facts.defaults)
    (problem,) = METHODS[method].problems(insertion, layout.model_copy(update={"layers": tuple(bare)}))
    assert "no layer of this model has any" in problem.found


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_one_step_moves_what_the_method_trains_and_nothing_else(kind: str, method: str) -> None:
    model = classifier_of(kind)
    layout, layers = inspect_layout(model), ((0, 1, 2) if method == "full" else (0, 2))
    insertion = insertion_of(method, layers)
    if method == "bitfit" and kind in WITHOUT_BIASES:
        problems = METHODS[method].problems(insertion, layout)
        assert "nothing to train" in problems[0].found
        return
    assert METHODS[method].problems(insertion, layout) == []
    expected = expected_names(method, layout, model, layers)
    with put_into(model, insertion) as inserted:
        head = {id(part) for path in layout.head_paths for part in model.get_submodule(path).parameters()}
        trained = {name for name, part in model.named_parameters() if part.requires_grad and id(part) not in head}
        assert trained == expected
        count = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
        assert count == METHODS[method].trainable(insertion, layout)
        moved = moved_by_a_step(model, inserted)
    assert moved <= expected
    assert len(moved) > 0.7 * len(expected)


@pytest.mark.parametrize("method", ["bitfit", "layernorm", "full"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2"])
def test_a_base_in_half_precision_learns_in_float32(kind: str, method: str) -> None:
    """A step of 1e-4 of a weight near 1 is lost in bfloat16, whose next number is 0.4 % away."""
    model = classifier_of(kind).to(torch.bfloat16)
    layout = inspect_layout(model)
    expected = expected_names(method, layout, model, (0, 1, 2))
    with put_into(model, insertion_of(method)) as inserted:
        assert {model.get_parameter(name).dtype for name in expected} == {torch.float32}
        moved = moved_by_a_step(model, inserted, learning_rate=1e-4, autocast=True)
        assert moved <= expected
        assert len(moved) > 0.7 * len(expected)
        model.eval()
        inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                inside = model(**inputs).logits.float()
            outside = model(**inputs).logits.float()
        assert (inside - outside).abs().max() < 0.1 * inside.abs().max() + 0.05
    assert {part.dtype for part in model.parameters()} == {torch.bfloat16}


def test_tied_weights_stay_tied_in_float32() -> None:
    from transformers import AutoModelForCausalLM

    from tests.unit.evaluate_models import config_of

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("gpt2")).to(torch.bfloat16)
    assert model.lm_head.weight is model.transformer.wte.weight
    with put_into(model, insertion_of("full")):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert model.lm_head.weight.dtype == torch.float32
    assert model.lm_head.weight is model.transformer.wte.weight


def test_biases_leave_the_matrices_to_lora_and_whole_layers_do_not() -> None:
    layout = inspect_layout(classifier_of("bert"))
    roles = tuple(sorted(str(role) for role in layout.roles()))
    lora = Insertion(method="lora", layers=(0, 1), modules=roles, settings=METHODS["lora"].facts.defaults)
    wrapped = METHODS["lora"].occupied(lora, layout)

    def claimed(method: str, layers: tuple[int, ...] = (0, 1, 2)) -> frozenset[str]:
        return METHODS[method].occupied(insertion_of(method, layers), layout)

    assert not wrapped & claimed("bitfit")
    assert not wrapped & claimed("layernorm")
    assert wrapped & claimed("full-layers")
    assert not wrapped & claimed("full-layers", (2,))
    assert wrapped & claimed("full")
    assert claimed("bitfit") & claimed("full-layers", (1,))
    assert claimed("layernorm") & claimed("full-layers", (1,))
    assert claimed("bitfit") & claimed("layernorm"), "a norm's bias would be trained by both"


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_lora_and_biases_train_side_by_side(kind: str) -> None:
    model = classifier_of(kind)
    layout = inspect_layout(model)
    settings = {**METHODS["lora"].facts.defaults, "rank": 2}
    lora = Insertion(method="lora", layers=(0, 1), modules=("attention.query", "attention.value"), settings=settings)
    found = []
    for pair in ((lora, insertion_of("bitfit")), (insertion_of("bitfit"), lora)):
        with put_into(model, *pair) as inserted:
            count = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
            assert count == sum(METHODS[one.method].trainable(one, layout) for one in pair)
            found.append(moved_by_a_step(model, inserted))
    assert any("lora_B" in name for name in found[0])
    assert any(name.endswith("base_layer.bias") for name in found[0])
    assert len(found[0]) == len(found[1])


def test_half_precision_originals_leave_the_device_while_their_copies_train() -> None:
    model = classifier_of("bert").to(torch.bfloat16).requires_grad_(False)
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    layout, untouched = inspect_layout(model), Untouched(model)
    originals = {name: part for name, part in model.named_parameters() if "layer.1." in name}
    insertion = Insertion(method="full-layers", layers=(1,), modules=(), settings={})
    with removed_afterwards(untouched):
        insert(untouched, Candidate(insertions=(insertion,), learning_rate=1e-3), layout, 0)
        assert all(part.numel() == 0 for part in originals.values())
    assert untouched.differences() == []
    for name, part in model.named_parameters():
        assert torch.equal(part, before[name]), name
