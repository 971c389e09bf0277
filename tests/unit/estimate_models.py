"""Configs without weights and configurations of peft, as a person has them in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autopeft.app.estimating import ScriptSpec, Step, estimate_script
from autopeft.domain.estimate import Estimate
from autopeft.domain.spec import ModelSpec

HIDDEN, FFN, LAYERS, WORDS, HEADS, GROUPS = 64, 96, 3, 128, 4, 2
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": 16,
    "vocab_size": WORDS,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "use_cache": True,
}
VALUES = HIDDEN * GROUPS // HEADS
"""Width of keys and of values."""
PARAMETERS = (
    WORDS * HIDDEN + LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * VALUES + 3 * HIDDEN * FFN + 2 * HIDDEN) + HIDDEN
)
"""Of the whole model, tied embeddings once."""


def model_folder(folder: Path, **changes: Any) -> Path:
    """A folder with a config.json and nothing else; a change to None leaves the key out."""
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def peft_file(folder: Path, **said: Any) -> Path:
    """An adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(said), encoding="utf-8")
    return path


def estimated(folder: Path, step: Step | None = None, *, dtype: str = "bfloat16", **said: Any) -> Estimate:
    """Of a configuration of peft on the small model, for one short batch; without one of full fine-tuning."""
    peft = str(peft_file(folder, **said)) if said else "none"
    asked = ScriptSpec(ModelSpec(source=str(model_folder(folder / "model")), dtype=dtype), peft)  # type: ignore[arg-type]
    return estimate_script(asked, step or Step(rows=2, tokens=24))


SPACE = """
name: small
summary: LoRA small enough for the small models.
parameters:
  rank: {summary: Rank., kind: choice, values: [1, 2, 4], ordered: true}
  modules: {summary: Modules., kind: modules, sets: {qv: [attention.query, attention.value], all: all}}
  layers: {summary: Layers., kind: layers, modes: top-k}
candidate:
  insertions:
    - {method: lora, layers: $layers, modules: $modules, settings: {rank: $rank, alpha_ratio: 1.0, dropout: 0.0}}
  learning_rate: 0.001
"""


def space_file(folder: Path) -> str:
    """A search space that every small model takes."""
    path = folder / "small.yaml"
    path.write_text(SPACE, encoding="utf-8")
    return str(path)
