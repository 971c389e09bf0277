"""The head of the task: what is new in the model and trained whole, beside any PEFT method."""

from __future__ import annotations

import copy
from typing import Any

from autopeft.domain.layout import ModelLayout, TaskName

_HEADS_OF_PEFT = ("classifier", "score")
"""Modules that peft trains and saves for sequence classification without being told."""
_NOTHING = "dummy-target-modules"
"""The `target_modules` with which peft inserts nothing and still trains and saves the head."""


def head_only_config(layout: ModelLayout) -> Any:
    """A `peft.LoraConfig` that inserts nothing and trains the head.

    Raises:
        ValueError: where the model has no new head, so that nothing would be trained.
    """
    from peft import LoraConfig

    if not layout.head_paths:
        raise ValueError("a candidate without insertions trains the head alone, and this model has no new head")
    return LoraConfig(**head_arguments(layout), target_modules=_NOTHING)


def head_arguments(layout: ModelLayout) -> dict[str, Any]:
    """Arguments of every peft configuration: the task, and the head's modules that peft would not train by itself."""
    if layout.task is TaskName.CAUSAL_LM:
        return {"task_type": "CAUSAL_LM", "modules_to_save": list(layout.head_paths) or None}
    extra = [path for path in layout.head_paths if path not in _HEADS_OF_PEFT]
    return {"task_type": "SEQ_CLS", "modules_to_save": extra or None}


def replace_heads(model: Any, layout: ModelLayout) -> None:
    """Put a trainable copy in the place of every head module, so that the original keeps its values."""
    for path in layout.head_paths:
        parent, _, name = path.rpartition(".")
        head = copy.deepcopy(model.get_submodule(path)).requires_grad_(True)
        setattr(model.get_submodule(parent), name, head)
