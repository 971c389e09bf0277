"""Prompt tuning, P-tuning, prefix tuning, Cartridges and LLaMA-Adapter keep what every method promises, and attend.

A prompt that is made of the embeddings (a prefix: of the keys and values) of real tokens must do what these tokens do;
and a row must be predicted the same alone and beside longer ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Insertion
from autopeft.evaluate.insertion import Inserted
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from tests.contract.method_contract import MethodContract, NewProcessContract
from tests.contract.method_runs import Base, base_of, put_in
from tests.unit.evaluate_models import CONFIGS, classifier_of

TOKENS = {"num_virtual_tokens": 5}
FRONT = torch.tensor([[5, 9, 13, 7, 11]])
"""Real tokens that stand before the text."""
ROWS = [torch.tensor(row) for row in ([4, 8, 15, 16, 19, 6, 10], [12, 17, 5, 18], [9, 14])]


class TestPromptTuning(NewProcessContract):
    method = "prompt-tuning"
    settings = TOKENS
    starts_as_base = False  # the prompt is there from the beginning
    learning_rate = 1e-1
    falls = 0.01  # it is the same for every text, and so learns few labels by heart


class TestPTuning(MethodContract):
    method = "p-tuning"
    settings = {**TOKENS, "encoder_hidden_size": 16}
    starts_as_base = False
    learning_rate = 3e-2
    falls = 0.01


class TestPrefixTuning(MethodContract):
    method = "prefix-tuning"
    settings = TOKENS
    starts_as_base = False
    learning_rate = 1e-1


class TestCartridge(MethodContract):
    method = "cartridge"
    settings = TOKENS
    starts_as_base = False
    learning_rate = 1e-1


class TestAdaptionPrompt(MethodContract):
    method = "adaption-prompt"
    kinds = ("gpt2", "llama", "mistral")
    settings = {"adapter_len": 4}
    learning_rate = 1e-1


def insertion_of(base: Base, method: str) -> Insertion:
    facts = METHODS[method].facts
    small = {"num_virtual_tokens": 5, "encoder_hidden_size": 16, "adapter_len": 4}
    settings = {name: small.get(name, value) for name, value in facts.defaults.items()}
    return Insertion(method=method, layers=tuple(range(len(base.layout.layers))), modules=(), settings=settings)


def classifier(kind: str) -> Base:
    from autopeft.evaluate.insertion import Untouched

    model = classifier_of(kind).requires_grad_(False)
    return Base(kind, model, inspect_layout(model), Untouched(model))


def alone(model: Any, row: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=row[None], attention_mask=torch.ones_like(row)[None]).logits[0]


def together(model: Any, pad: int) -> torch.Tensor:
    width = max(map(len, ROWS))
    ids = torch.full((len(ROWS), width), pad)
    for index, row in enumerate(ROWS):
        ids[index, : len(row)] = row
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ROWS])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def open_gates(inserted: Inserted) -> None:
    """What starts closed, or at zero, says nothing about padding."""
    torch.manual_seed(7)
    for name, part in inserted.model.named_parameters():
        if part.requires_grad and ("adaption_gate" in name or "prompt_encoder" in name):
            torch.nn.init.normal_(part)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning", "cartridge"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_classifier_is_refused_or_judges_a_padded_row_as_the_row_alone(kind: str, method: str) -> None:
    base = classifier(kind)
    insertion = insertion_of(base, method)
    problems = METHODS[method].problems(insertion, base.layout)
    if problems:
        refused = (
            kind in ("distilbert", "deberta-v2") if method in ("prefix-tuning", "cartridge") else base.layout.causal
        )
        assert refused, problems
        return
    inserted = put_in(base, insertion, 1)
    open_gates(inserted)
    inserted.model.eval()
    found = together(inserted.model, base.model.config.pad_token_id)
    for index, row in enumerate(ROWS):
        assert torch.allclose(found[index], alone(inserted.model, row), atol=1e-5)
    assert not torch.allclose(found[0], alone(classifier(kind).model, ROWS[0]), atol=1e-3), "it is not attended to"
    heads = {id(part) for path in base.layout.head_paths for part in inserted.base.get_submodule(path).parameters()}
    trained = {id(part) for part in inserted.trainable()}
    assert len(heads & trained) * 2 == len(heads), "a head is not trained"


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "prefix-tuning", "cartridge", "adaption-prompt"])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "qwen2", "gemma", "mistral"])
def test_a_language_model_is_refused_or_goes_on_with_a_padded_row_as_with_the_row_alone(kind: str, method: str) -> None:
    base = base_of(kind)
    insertion = insertion_of(base, method)
    if METHODS[method].problems(insertion, base.layout):
        assert method == "adaption-prompt"
        assert kind in ("opt", "qwen2", "gemma")
        with pytest.raises(Exception, match=r"Unsupported model type|shape"):
            _insert_unchecked(base, insertion)
        return
    inserted = put_in(base, insertion, 1)
    open_gates(inserted)
    inserted.model.eval()
    found = together(inserted.model, 0)[:, -max(map(len, ROWS)) :]
    for index, row in enumerate(ROWS):
        assert torch.allclose(found[index, len(row) - 1], alone(inserted.model, row)[-1], atol=1e-5)
    assert not torch.allclose(found[0], alone(base_of(kind).model, ROWS[0]), atol=1e-3), "it is not attended to"


def _insert_unchecked(base: Base, insertion: Insertion) -> None:
    from peft import get_peft_model

    config = METHODS[insertion.method].config(insertion, base.layout, 1)
    config.task_type = "CAUSAL_LM"
    get_peft_model(base.model, config)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_a_prompt_of_real_tokens_does_what_these_tokens_do_to_an_encoder(kind: str) -> None:
    base = classifier(kind)
    text = torch.cat([FRONT[0], ROWS[0]])
    expected = alone(base.model, text)
    inserted = put_in(base, insertion_of(base, "prompt-tuning"), 1)
    words = inserted.base.get_input_embeddings()(FRONT)[0].detach()
    with torch.no_grad():
        inserted.model.prompt_encoder["default"].embedding.weight.copy_(words)
    inserted.model.eval()
    assert torch.allclose(alone(inserted.model, ROWS[0]), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "gemma"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "cartridge"])
def test_real_tokens_before_the_text_do_what_these_tokens_do_to_a_decoder(kind: str, method: str) -> None:
    base = base_of(kind)
    length = len(ROWS[0])
    with torch.no_grad():
        expected = alone(base.model, torch.cat([FRONT[0], ROWS[0]]))[-length:]
        cache = base.model(input_ids=FRONT, use_cache=True).past_key_values
    inserted = put_in(base, insertion_of(base, method), 1)
    encoder = inserted.model.prompt_encoder["default"]
    if method == "prompt-tuning":
        values = inserted.base.get_input_embeddings()(FRONT)[0].detach()
    else:
        # [tokens, layer and kind, heads * width], as peft lays a prefix out
        parts = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
        values = torch.cat(parts, dim=1)
    if method == "cartridge":
        encoder.load_prompt_embeddings(values)
    else:
        with torch.no_grad():
            encoder.embedding.weight.copy_(values)
    inserted.model.eval()
    assert torch.allclose(alone(inserted.model, ROWS[0])[-length:], expected, atol=1e-5)


def test_a_prefix_of_an_encoder_is_attended_to_in_every_layer() -> None:
    base = classifier("bert")
    inserted = put_in(base, insertion_of(base, "prefix-tuning"), 1)
    inserted.model(input_ids=ROWS[0][None], labels=torch.tensor([1])).loss.backward()
    gradient = inserted.model.prompt_encoder["default"].embedding.weight.grad
    per_part = gradient.view(5, 2 * 3, -1).abs().amax(dim=(0, 2))  # a key part and a value part per layer
    assert (per_part[1::2] > 0).all(), "values at zero still get a gradient through their share of the attention"


def test_a_prompt_and_a_text_that_need_more_positions_than_there_are_are_refused() -> None:
    base = classifier("bert")
    layout = base.layout.model_copy(update={"text_tokens": 62})
    found = METHODS["prompt-tuning"].problems(insertion_of(base, "prompt-tuning"), layout)
    assert "5 tokens before texts of up to 62 need more than the 64 positions" in str(found[0])
    assert found[0].allowed == "up to 2"
    fits = base.layout.model_copy(update={"text_tokens": 59})
    assert METHODS["prompt-tuning"].problems(insertion_of(base, "prompt-tuning"), fits) == []
