"""Folding trained weights into those of the base, so that a plain model is left."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from autopeft.evaluate.methods import METHODS, Companion


def unmergeable(methods: Collection[str]) -> tuple[str, ...]:
    """Those of the methods that add something which no weight of the base can hold."""
    return tuple(name for name in dict.fromkeys(methods) if not METHODS[name].facts.merges)


def merged(model: Any, companions: Sequence[Companion] = ()) -> Any:
    """The plain model that predicts the same; what is given is taken apart.

    Args:
        model: A `PeftModel`, or a base model with methods in it in place, every one of them mergeable. Trained
            parameters of the base itself are where they belong already.
        companions: Of the insertions in it.
    """
    for companion in companions:
        companion.fold()
    if isinstance(model, PeftModel):
        for path, module in _found(model.get_base_model(), ModulesToSaveWrapper):
            # In the place of peft's wrappers, because most tuners unwrap only heads that are one matrix.
            _put(model.get_base_model(), path, module.modules_to_save[module.active_adapter])
        return model.merge_and_unload()
    for path, module in _found(model, BaseTunerLayer):
        module.merge()
        _put(model, path, module.get_base_layer())
    return model


def _found(model: Any, kind: type) -> Iterator[tuple[str, Any]]:
    return iter([(path, module) for path, module in model.named_modules() if isinstance(module, kind)])


def _put(model: Any, path: str, module: Any) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
