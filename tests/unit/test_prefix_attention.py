"""A prefix is attention over more keys and values, in every model, beside every mask and cache."""

import copy
import math
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.errors import UserError
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.evaluate.insertion import insert, removed_afterwards
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods.prefix_attention import give_prefix
from autopeft.evaluate.methods.prefix_modules import LayerPrefix, PlainPrefix
from autopeft.evaluate.untouched import Untouched
from tests.unit.evaluate_models import CONFIGS, config_of

ENCODERS = ("bert", "roberta", "distilbert", "deberta-v2")
DECODERS = tuple(kind for kind in CONFIGS if kind not in ENCODERS)
LENGTH = 3
TOKENS = 7


def model_of(kind: str, attention: str | None = None, **changes: Any) -> Any:
    """A random model in evaluation mode, wide awake: every layer matters to what it says."""
    config = config_of(kind, **changes)
    if attention is not None:
        config._attn_implementation = attention
    torch.manual_seed(0)
    family = AutoModelForCausalLM if kind in DECODERS else AutoModelForSequenceClassification
    return family.from_config(config).eval()


def prefixes_of(model: Any) -> list[LayerPrefix]:
    return [module for module in model.modules() if isinstance(module, LayerPrefix)]


@contextmanager
def prefixed(model: Any, layers: tuple[int, ...] = (0, 1, 2), bottleneck: int = 0) -> Any:
    """The model with a prefix as large as its own keys, so that it takes a fair share of the attention."""
    untouched, layout = Untouched(model), inspect_layout(model)
    settings = {"length": LENGTH, "bottleneck": bottleneck}
    insertion = Insertion(method="prefix", layers=layers, modules=(), settings=settings)
    with removed_afterwards(untouched):
        insert(untouched, Candidate(insertions=(insertion,), learning_rate=1e-3), layout, seed=5)
        torch.manual_seed(6)
        for prefix in prefixes_of(model):
            if isinstance(prefix, PlainPrefix):
                nn.init.normal_(prefix.keys_values)
        yield model.eval()
    assert untouched.differences() == []


def tokens(rows: int = 2, width: int = TOKENS, seed: int = 1) -> torch.Tensor:
    return torch.randint(4, 20, (rows, width), generator=torch.Generator().manual_seed(seed))


def slow_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefix: LayerPrefix) -> torch.Tensor:
    """One row, one head and one query at a time, `[batch, tokens, heads * head_dim]` in and out; sees every key."""
    width, (before_keys, before_values) = prefix.head_dim, prefix()
    heads, groups = query.shape[-1] // width, query.shape[-1] // key.shape[-1]
    found = torch.zeros_like(query)
    for row in range(query.shape[0]):
        for head in range(heads):
            group = head // groups
            own = slice(group * width, (group + 1) * width)
            keys = torch.cat([before_keys[group], key[row, :, own]])
            values = torch.cat([before_values[group], value[row, :, own]])
            for place in range(query.shape[1]):
                scores = keys @ query[row, place, head * width : (head + 1) * width] / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                found[row, place, head * width : (head + 1) * width] = weights @ values
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_an_encoder_attends_to_the_prefix_and_its_tokens(kind: str, attention: str) -> None:
    model, seen = model_of(kind, attention), {}
    layer = inspect_layout(model).layers[1]
    with torch.no_grad(), prefixed(model):
        for role in (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT):
            path = layer.module(role).path
            model.get_submodule(path).register_forward_hook(
                lambda _, arguments, output, role=role: seen.update({role: (arguments[0], output)})
            )
        model(input_ids=tokens(), attention_mask=torch.ones(2, TOKENS, dtype=torch.long))
        parts = [seen[role][1] for role in (Role.QUERY, Role.KEY, Role.VALUE)]
        expected = slow_attention(*parts, prefixes_of(model)[1])
    assert torch.allclose(seen[Role.ATTENTION_OUTPUT][0], expected, atol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_debertas_own_attention_is_joined_exactly(relative: bool) -> None:
    changes = {} if relative else {"relative_attention": False, "pos_att_type": []}
    model = model_of("deberta-v2", **changes)
    layer, seen = inspect_layout(model).layers[0], {}
    module = model.get_submodule(layer.attention)
    calls: list[Any] = []
    if relative:
        bias = module.disentangled_attention_bias

        def kept(*arguments: Any) -> torch.Tensor:
            calls.append(bias(*arguments))
            return calls[-1]

        module.disentangled_attention_bias = kept
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 5:] = 0
    with torch.no_grad(), prefixed(model, layers=(0,)):
        for role in (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT):
            model.get_submodule(layer.module(role).path).register_forward_hook(
                lambda _, arguments, output, role=role: seen.update({role: (arguments[0], output)})
            )
        model(input_ids=tokens(), attention_mask=mask)
        prefix = prefixes_of(model)[0]
        query, key, value = (
            seen[role][1].view(2, TOKENS, 4, 4).transpose(1, 2) for role in (Role.QUERY, Role.KEY, Role.VALUE)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(4 * (3 if relative else 1))
        if relative:
            scores = scores + calls[0].view(2, 4, TOKENS, TOKENS)
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e30)
        before_keys, before_values = prefix()
        both = torch.cat([query @ before_keys.transpose(-1, -2) / 2, scores], dim=-1).exp()
        both = both / both.sum(-1, keepdim=True)
        expected = both @ torch.cat([before_values.expand(2, -1, -1, -1), value], dim=2)
    found = seen[Role.ATTENTION_OUTPUT][0].view(2, TOKENS, 4, 4).transpose(1, 2)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert torch.allclose(found[1, :, :5], expected[1, :, :5], atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_says_what_it_says_with_the_prefix_in_its_cache(kind: str, attention: str) -> None:
    """The library's own way to have keys and values in front, with positions that count from the first real token."""
    model, ids = model_of(kind, attention), tokens()
    positions = torch.arange(TOKENS).expand(2, -1)
    with torch.no_grad():
        with prefixed(model):
            found = model(input_ids=ids, position_ids=positions).logits
            parts = [prefix().detach() for prefix in prefixes_of(model)]
        cache = DynamicCache(config=model.config)
        for index, (keys, values) in enumerate(parts):
            cache.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), index)
        mask = torch.ones(2, LENGTH + TOKENS, dtype=torch.long)
        expected = model(input_ids=ids, attention_mask=mask, past_key_values=cache, position_ids=positions).logits
        plain = model(input_ids=ids, position_ids=positions).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "deberta-v2"])
def test_both_attention_functions_give_the_same_values_and_gradients(kind: str) -> None:
    found = []
    for attention in ("eager", "sdpa"):
        model = model_of(kind, attention)
        with prefixed(model, layers=(0, 2), bottleneck=5):
            logits = model(input_ids=tokens(), attention_mask=padded_mask("right")).logits
            logits = logits[:, : TOKENS - 2] if kind in DECODERS else logits
            logits.square().sum().backward()
            gradients = [part.grad for prefix in prefixes_of(model) for part in prefix.parameters()]
            assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
            found.append([logits.detach(), *gradients])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-4, rtol=1e-3)


def padded_mask(side: str) -> torch.Tensor:
    """The second of two rows is two tokens shorter."""
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, : 2 if side == "left" else 0] = 0
    if side == "right":
        mask[1, TOKENS - 2 :] = 0
    return mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_padded_row_says_what_it_says_alone(kind: str, side: str) -> None:
    if side == "left" and kind in ("distilbert", "roberta"):
        pytest.skip("its positions cannot be told to begin behind the padding")
    model, mask, ids = model_of(kind), padded_mask(side), tokens()
    if kind not in DECODERS:
        ids[:, 0 if side == "right" else 2] = 2  # the pooled token stands first
    ids = ids.masked_fill(mask == 0, model.config.pad_token_id or 0)
    real = mask[1].bool()
    named = {} if kind == "distilbert" or kind == "roberta" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    body = model.base_model
    with torch.no_grad(), prefixed(model):
        together = body(input_ids=ids, attention_mask=mask, **named).last_hidden_state[1, real]
        alone = body(input_ids=ids[1:, real]).last_hidden_state[0]
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("kind", DECODERS)
def test_generation_needs_no_cache_to_say_the_same(kind: str) -> None:
    model = model_of(kind)
    mask = padded_mask("left")
    ids = tokens().masked_fill(mask == 0, 0)
    common = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(input_ids=ids, attention_mask=mask, **common)
    with prefixed(model):
        cached = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **common)
        uncached = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **common)
        alone = model.generate(input_ids=ids[1:, 2:], attention_mask=mask[1:, 2:], use_cache=True, **common)
        static = model.generate(input_ids=ids, attention_mask=mask, cache_implementation="static", **common)
        cache = model(input_ids=ids, use_cache=True).past_key_values
    assert torch.equal(cached, uncached)
    assert torch.equal(static, cached)
    assert torch.equal(cached[1, 2:], alone[0])
    assert cache.get_seq_length() == TOKENS, "the prefix went into the cache"
    assert plain.shape == cached.shape


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_text_in_two_parts_says_what_it_says_at_once(attention: str) -> None:
    """The second part has more keys than queries, and none of the prefix in its cache."""
    model, ids = model_of("llama", attention), tokens()
    with torch.no_grad(), prefixed(model):
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :3], use_cache=True)
        second = model(input_ids=ids[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    assert torch.allclose(torch.cat([first.logits, second.logits], dim=1), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["mistral"])
def test_a_sliding_window_slides_over_real_tokens_alone(kind: str) -> None:
    """A window of one: a token sees itself and the prefix, so what stands before it does not matter."""
    model = model_of(kind, num_hidden_layers=1, sliding_window=1)
    ids = tokens()
    other = ids.clone()
    other[:, :-1] = tokens(seed=9)[:, :-1]
    with torch.no_grad(), prefixed(model, layers=(0,)):
        one, two = (model(input_ids=given).logits[:, -1] for given in (ids, other))
        prefixes_of(model)[0].keys_values.mul_(-1)
        turned = model(input_ids=ids).logits[:, -1]
    assert torch.allclose(one, two, atol=1e-5)
    assert not torch.allclose(one, turned, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "llama"])
def test_dropout_falls_on_the_prefix_too(kind: str) -> None:
    name = "attention_dropout" if kind in DECODERS else "attention_probs_dropout_prob"
    model = model_of(kind, "eager", **{name: 1.0})
    layer, seen = inspect_layout(model).layers[0], []
    with torch.no_grad(), prefixed(model, layers=(0,)):
        output = model.get_submodule(layer.module(Role.ATTENTION_OUTPUT).path)
        output.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        model.train()
        model(input_ids=tokens())
        model.eval()
        model(input_ids=tokens())
    assert seen[0].abs().max() == 0
    assert seen[1].abs().max() > 0


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "llama"])
def test_half_precision_says_nearly_the_same(kind: str) -> None:
    model = model_of(kind)
    with torch.no_grad():
        with prefixed(model, bottleneck=4):
            exact = model(input_ids=tokens()).logits
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(input_ids=tokens()).logits
        model.to(torch.bfloat16)
        with prefixed(model, bottleneck=4):
            assert all(part.dtype == torch.float32 for prefix in prefixes_of(model) for part in prefix.parameters())
            short = model(input_ids=tokens()).logits
    for found in (mixed, short):
        assert (found.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "llama"])
def test_recomputing_the_layers_gives_the_same_gradients(kind: str) -> None:
    found = []
    for recompute in (False, True):
        model = model_of(kind)
        with prefixed(model, bottleneck=4):
            if recompute:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.train()
                for module in model.modules():
                    if isinstance(module, nn.Dropout):
                        module.p = 0.0
            model(input_ids=tokens(), use_cache=False if kind in DECODERS else None).logits.sum().backward()
            found.append([part.grad for prefix in prefixes_of(model) for part in prefix.parameters()])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_a_copy_of_the_model_has_prefixes_of_its_own() -> None:
    for kind in ("bert", "deberta-v2"):
        model = model_of(kind)
        with torch.no_grad(), prefixed(model, bottleneck=4):
            before = model(input_ids=tokens()).logits
            copied = copy.deepcopy(model)
            for prefix in prefixes_of(model):
                prefix.up.weight.mul_(3)
            assert torch.equal(copied(input_ids=tokens()).logits, before)
            assert not torch.allclose(model(input_ids=tokens()).logits, before, atol=1e-4)


class OwnAttention(nn.Module):
    """Grouped-query attention that knows no interface, with its output matrix inside."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, width, _ = x.shape
        query = self.q(x).view(rows, width, 4, 2).transpose(1, 2)
        key, value = (
            part(x).view(rows, width, 2, 2).transpose(1, 2).repeat_interleave(2, 1) for part in (self.k, self.v)
        )
        weights = functional.softmax(query @ key.transpose(-1, -2) / math.sqrt(2), dim=-1)
        return self.o((weights @ value).transpose(1, 2).reshape(rows, width, 8))


def own_layout(query: bool = True) -> tuple[LayerLayout, ModelLayout]:
    shapes = {Role.QUERY: ("q", 8), Role.KEY: ("k", 4), Role.VALUE: ("v", 4), Role.ATTENTION_OUTPUT: ("o", 8)}
    modules = tuple(
        ModuleLayout(role=role, path=f"0.{name}", in_features=8, out_features=wide)
        for role, (name, wide) in shapes.items()
        if query or role != Role.QUERY
    )
    layer = LayerLayout(index=0, path="0", modules=modules, attention="0")
    layout = ModelLayout(
        model_type="own",
        hidden_size=8,
        heads=4,
        kv_heads=2,
        head_dim=2,
        layers=(layer,),
        head_paths=(),
        parameters=0,
        weights_bytes=0,
    )
    return layer, layout


def test_any_attention_that_takes_a_softmax_can_have_a_prefix() -> None:
    torch.manual_seed(3)
    model, prefix = nn.Sequential(OwnAttention()), PlainPrefix(2, LENGTH, 2)
    nn.init.normal_(prefix.keys_values)
    give_prefix(model, *own_layout(), prefix)
    x = torch.randn(2, 5, 8)
    own = model[0]
    assert torch.allclose(model(x), own.o(slow_attention(own.q(x), own.k(x), own.v(x), prefix)), atol=1e-6)


def test_an_attention_that_a_prefix_cannot_join_is_refused() -> None:
    with pytest.raises(UserError, match="cannot join"):
        give_prefix(nn.Sequential(OwnAttention()), *own_layout(query=False), PlainPrefix(2, LENGTH, 2))
    model = model_of("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    layout = inspect_layout(model)
    with pytest.raises(UserError, match="flash_attention_2"):
        give_prefix(model, layout.layers[0], layout, PlainPrefix(2, LENGTH, 4))
