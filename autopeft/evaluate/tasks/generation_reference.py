"""Greedy answers the slow, obvious way: the whole text anew for every token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from autopeft.evaluate.outcomes import NotFiniteError


def generate_plainly(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    stop_ids: Collection[int],
    max_new_tokens: int,
    device: torch.device,
) -> list[tuple[int, ...]]:
    """One answer per prompt, without the stop token, by forward passes over rows padded on the right, as in training.

    Raises:
        NotFiniteError: where a prediction is NaN or infinite.
    """
    texts = [list(prompt) for prompt in prompts]
    ended = [False] * len(texts)
    for _ in range(max_new_tokens):
        width = max(map(len, texts))
        tokens = torch.tensor([[*text, *[pad_id] * (width - len(text))] for text in texts], device=device)
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device)
        # Prompts of peft's make the logits longer than the row, at its beginning.
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, -width:]
        for row, text in enumerate(texts):
            if ended[row]:
                continue
            at_end = logits[row, len(text) - 1]
            if not bool(torch.isfinite(at_end).all()):
                raise NotFiniteError("the model's predictions are not finite")
            text.append(int(at_end.argmax()))
            ended[row] = text[-1] in stop_ids
        if all(ended):
            break
    return [until_stop(text[len(prompt) :], stop_ids) for text, prompt in zip(texts, prompts, strict=True)]


def until_stop(tokens: Sequence[int], stop_ids: Collection[int]) -> tuple[int, ...]:
    """What stands before the first stop token."""
    end = next((index for index, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tuple(tokens[:end])
