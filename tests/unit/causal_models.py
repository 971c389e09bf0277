"""Tiny random language models, tokenizers and prompts with answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from tests.unit.evaluate_models import BAD, GOOD, NEUTRAL, WORDS, config_of

DECODERS = ("gpt2", "opt", "llama", "qwen2", "gemma", "mistral")
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}the {{ m.content }} [SEP]{% else %}a {{ m.content }} [SEP]{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}a {% endif %}"
)
"""A turn is `the … [SEP]` of the user or `a … [SEP]` of the assistant."""


def word_tokenizer(template: str | None = None) -> Any:
    """One token per word of `WORDS`, `[CLS]` before every text, `[SEP]` at the end of an answer."""
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    raw.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        chat_template=template,
        model_input_names=["input_ids", "attention_mask"],
    )


def language_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A random decoder with its head, in evaluation mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(kind, **changes)).eval()


def save_language_model(folder: Path, kind: str = "llama", template: str | None = None, **changes: Any) -> Path:
    language_model(kind, **changes).save_pretrained(folder)
    word_tokenizer(template).save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opinions(rows: int, seed: int, answer: bool = True) -> list[dict[str, Any]]:
    """Words that are good or bad, and a completion that ends with which of them it is."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        good = draw.random() < 0.5
        words = [draw.choice(GOOD if good else BAD) for _ in range(draw.randint(2, 5))] + draw.choices(NEUTRAL, k=3)
        draw.shuffle(words)
        said = "great" if good else "awful"
        row = {"prompt": " ".join(words), "completion": f"film is {said}"}
        found.append({**row, "answer": said} if answer else row)
    return found


def write_opinions(folder: Path, answer: bool = True) -> dict[str, str]:
    """The `data` part of a spec."""
    sizes = {"train": 64, "validation": 24, "test": 24}
    return {
        name: str(write_lines(folder / f"{name}.jsonl", opinions(rows, seed, answer)))
        for seed, (name, rows) in enumerate(sizes.items())
    }


def lora_of(layout: ModelLayout, rate: float = 1e-2, rank: int = 4) -> Candidate:
    """LoRA on every linear module."""
    insertion = Insertion(
        method="lora",
        layers=tuple(range(len(layout.layers))),
        modules=tuple(sorted(role.value for role in layout.roles())),
        settings={"rank": rank, "alpha_ratio": 2.0, "dropout": 0.0},
    )
    return Candidate(insertions=(insertion,), learning_rate=rate)
