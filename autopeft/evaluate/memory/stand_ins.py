"""Methods of peft that look at values of weights when they are put in: what stands in where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.adamss import layer as adamss
from peft.tuners.frod.layer import FrodLayer
from peft.tuners.lora.variants import MontecloraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

TASK_IDS = frozenset(("MULTITASK_PROMPT_TUNING", "POLY"))
"""Methods whose forward pass wants the number of each row's task."""


@contextmanager
def without_weights(name: str, config: Any) -> Iterator[None]:
    """Inside, `get_peft_model` puts a method into a model on `meta`, with the shapes that it has elsewhere.

    Starts that look at data, weights or a tokenizer become plain ones; they leave nothing behind that memory would
    tell. SHiRA's random mask marks as many weights as its rank says, AdaMSS's clusters are of equal sizes: the number
    of its parameters does not depend on the sizes while each has as many rows as its rank.
    """
    with ExitStack() as stack:
        if name == "SHIRA":
            config.mask_fn = _marked
        elif name == "FROD":
            config.progressbar = False
        elif name == "ADAMSS":
            stack.enter_context(patch.object(adamss, "clustering_Z", _clusters))
        elif name == "LORA" and config.init_lora_weights == "corda":
            config.init_lora_weights = True
        elif name == "PROMPT_TUNING":
            config.prompt_tuning_init = "RANDOM"
        yield


def complete(model: nn.Module) -> None:
    """After a method is put into a model on `meta`: what peft leaves out there.

    The shapes that FRoD's forward pass reads, which are values, come back to the host. MonteCLoRA's parameters, which
    peft makes in the first forward pass on a real device, are made.
    """
    for module in model.modules():
        if isinstance(module, FrodLayer):
            for key in list(module.frod_s_size or ()):
                module.frod_s_size[key] = torch.tensor((module.in_features, module.in_features), device="cpu")
        samplers: Any = getattr(module, "lora_monteclora_sampler", None)
        if samplers is not None:
            configs: Any = module._lora_monteclora_config
            for key, config in configs.items():
                if key not in samplers:
                    samplers[key] = MontecloraLinearVariant._create_sampler(module, key, config)


def in_base_dtype(model: nn.Module) -> None:
    """What peft does to adapters when it moves them beside their base layer, which it leaves out on `meta`."""
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        _, dtype = module._get_base_layer_device_and_dtype(module.get_base_layer())
        if dtype is None or not dtype.is_floating_point:
            continue
        for name in (*module.adapter_layer_names, *module.other_param_names):
            parts = getattr(module, name, None)
            if isinstance(parts, nn.ModuleDict):
                parts.to(dtype)
            elif isinstance(parts, nn.ParameterDict | BufferDict):
                for key, part in list(parts.items()):
                    if part.is_floating_point():
                        cast = part.detach().to(dtype)
                        parts[key] = nn.Parameter(cast, part.requires_grad) if isinstance(part, nn.Parameter) else cast


def _marked(layer: nn.Linear, rank: int, **settings: Any) -> torch.Tensor:
    """In place of a mask `[out, in]` with so many ones: nothing but these ones, because on `meta` all count as such."""
    return torch.ones(rank * (layer.in_features + layer.out_features), 1, device="meta")


def _clusters(rows: torch.Tensor, wanted: int, iterations: int) -> tuple[torch.Tensor, int]:
    """The cluster of each row `[rows]`, and how many there are."""
    count = min(wanted, rows.shape[0])
    return torch.arange(rows.shape[0], device="cpu") % count, count
