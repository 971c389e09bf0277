"""Tiny random models of many architectures, a tokenizer and a toy data set, built without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.domain.results import TaskInfo

TASK = TaskInfo(kind="classification", labels=("bad", "good"), metric="accuracy", metrics=("accuracy",), rows={})
GOOD = ("fine", "great", "lovely", "superb", "warm", "bright")
BAD = ("awful", "poor", "dull", "cold", "broken", "dark")
NEUTRAL = ("the", "a", "film", "story", "scene", "is", "was", "very", "and", "with")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *NEUTRAL)
LAYERS = 3
LORAS = ("lora", "rslora", "dora", "pissa")
"""LoRA and the relatives that share its settings."""
_SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # at the usual 0.02 so narrow a model says the same of every text
}
_GPT = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
_DISTIL = {"vocab_size": len(WORDS), "dim": 16, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 24}
_DEBERTA = {
    "pooler_hidden_size": 16,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": False,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _SIZES),
    "roberta": ("RobertaConfig", {**_SIZES, **_IDS, "pad_token_id": 1, "max_position_embeddings": 66}),
    "distilbert": ("DistilBertConfig", {**_DISTIL, "max_position_embeddings": 64}),
    "deberta-v2": ("DebertaV2Config", {**_SIZES, **_DEBERTA}),
    "gpt2": ("GPT2Config", {**_GPT, **_IDS}),
    "opt": (
        "OPTConfig",
        {
            **{key: value for key, value in _SIZES.items() if key != "intermediate_size"},
            **_IDS,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
        },
    ),
    "llama": ("LlamaConfig", {**_SIZES, **_IDS, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", {**_SIZES, **_IDS, "num_key_value_heads": 2}),
    "gemma": ("GemmaConfig", {**_SIZES, **_IDS, "num_key_value_heads": 1, "head_dim": 8}),
    "mistral": ("MistralConfig", {**_SIZES, **_IDS, "num_key_value_heads": 2}),
}
"""Name of the configuration class and its arguments, by model type."""


def config_of(kind: str, **changes: Any) -> Any:
    """The configuration of a model of `LAYERS` layers, 16 wide where `changes` say nothing else, for two classes."""
    name, arguments = CONFIGS[kind]
    return getattr(transformers, name)(**{**arguments, **changes}, num_labels=2)


def classifier_of(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A random model with a classification head, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config_of(kind, **changes)).eval()
    if model.config.pad_token_id is None:
        model.config.pad_token_id = 0
    return model


def save_model(folder: Path, kind: str = "bert", seed: int = 0, **changes: Any) -> Path:
    """Write a model without head and its tokenizer, as a checkpoint from the hub would be."""
    torch.manual_seed(seed)
    AutoModel.from_config(config_of(kind, **changes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: int, seed: int) -> Path:
    """A JSONL file of sentences of 4 to 12 words, half of them good or bad, which is the label."""
    draw = random.Random(seed)
    lines = []
    for _ in range(rows):
        label = draw.random() < 0.5
        half = draw.randint(2, 6)
        words = [draw.choice(NEUTRAL) for _ in range(half)] + [draw.choice(GOOD if label else BAD) for _ in range(half)]
        draw.shuffle(words)
        lines.append(json.dumps({"text": " ".join(words), "label": "good" if label else "bad"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_data(folder: Path) -> dict[str, str]:
    """The `data` part of a spec: files for training, validation and test below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"train": 96, "validation": 40, "test": 40}
    return {
        name: str(write_rows(folder / f"{name}.jsonl", rows, seed)) for seed, (name, rows) in enumerate(sizes.items())
    }


def candidate_of(
    layout: ModelLayout,
    variant: str = "lora",
    rank: int = 4,
    layers: tuple[int, ...] = (0, 1, 2),
    modules: tuple[str, ...] | None = None,
    dropout: float = 0.0,
) -> Candidate:
    settings: dict[str, Any] = {"rank": rank, "alpha_ratio": 2.0, "dropout": dropout}
    roles = tuple(str(role) for role in layout.roles()) if modules is None else modules
    insertion = Insertion(method=variant, layers=layers, modules=roles, settings=settings)
    return Candidate(insertions=(insertion,), learning_rate=1e-3)


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(4, 20, (4, 7), generator=draw),
        "attention_mask": torch.ones(4, 7, dtype=torch.long),
        "labels": torch.tensor([0, 1, 1, 0]),
    }
