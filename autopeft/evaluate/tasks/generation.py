"""Greedy answers to many prompts at once."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from autopeft.evaluate.arithmetic import autocast
from autopeft.evaluate.outcomes import NotFiniteError
from autopeft.evaluate.tasks.generation_reference import generate_plainly, until_stop


@dataclass(frozen=True)
class Decoding:
    """What ends an answer and how long it may be."""

    pad_id: int
    stop_ids: Collection[int]
    max_new_tokens: int


def generate(
    model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, device: torch.device, dtype: torch.dtype
) -> list[tuple[int, ...]]:
    """The most likely token again and again, up to a stop token, which is left out; one answer per prompt.

    The prompts are padded on the left, so that all rows go on at the same place, with positions counted from each
    row's first real token; keys and values of what was read are kept. A model of which the cache does not say all goes
    the plain way of `generate_plainly`, which asks nothing of it but forward passes as in training.

    Raises:
        NotFiniteError: where a prediction is NaN or infinite.
    """
    model.eval()
    with torch.no_grad(), autocast(device, dtype):
        if not keeps_cache(model):
            return generate_plainly(model, prompts, decoding.pad_id, decoding.stop_ids, decoding.max_new_tokens, device)
        return _generate(model, prompts, decoding, device)


def keeps_cache(model: Any) -> bool:
    """Whether a cache of keys and values says all about the tokens that were read.

    It does in a plain model, where peft acts on modules only, and with our own methods: a bottleneck looks at one token
    at a time, and a prefix joins the attention behind the cache. peft's prompts and prefixes claim the cache for
    themselves.
    """
    if isinstance(model, PeftModel):
        configs = model.peft_config.values()
        return not any(one.is_prompt_learning or one.is_adaption_prompt for one in configs)
    return True


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, device: torch.device
) -> list[tuple[int, ...]]:
    width = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    rows = [[*[decoding.pad_id] * (width - len(prompt)), *prompt] for prompt in prompts]
    tokens = torch.tensor(rows, dtype=torch.long, device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    stops = torch.tensor(sorted(decoding.stop_ids), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    written: list[torch.Tensor] = []
    cache = None
    arguments = _understood(model)
    for _ in range(decoding.max_new_tokens):
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
        known = {name: value for name, value in inputs.items() if name in arguments}
        found = model(**known, past_key_values=cache, use_cache=True)
        cache, logits = found.past_key_values, found.logits[:, -1]
        if not bool(torch.isfinite(logits).all()):
            raise NotFiniteError("the model's predictions are not finite")
        following = logits.argmax(dim=-1)
        written.append(following)
        ended |= torch.isin(following, stops)
        if bool(ended.all()):
            break
        tokens = following[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    answers = torch.stack(written, dim=1).tolist()
    return [until_stop(answer, decoding.stop_ids) for answer in answers]


def _understood(model: Any) -> frozenset[str]:
    """Arguments of the forward pass of the model below any wrapper of peft's."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return frozenset(inspect.signature(type(base).forward).parameters)
