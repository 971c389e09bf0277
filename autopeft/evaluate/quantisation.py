"""Base models whose frozen weights are held in 4 or 8 bits by bitsandbytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.domain.spec import ModelSpec
from autopeft.evaluate.layout import head_paths

PACKAGE = "bitsandbytes"
BITS_PER_WEIGHT = {"4bit": 4 + 8 / 64 + 32 / (64 * 256), "8bit": 8.0}
"""4 bits: one 8-bit constant per 64 weights, and one 32-bit constant per 256 of these (Dettmers et al., NeurIPS 2023,
section 3). 8 bits: the constants are one per output row, too few to count."""


def check_quantised(spec: ModelSpec, has_gpu: bool) -> None:
    """Raises UserError where bitsandbytes is missing or has no GPU to work on."""
    problems = []
    if importlib.util.find_spec(PACKAGE) is None:
        problems.append(
            Problem(
                "model.load_in",
                f"{spec.load_in} needs the package {PACKAGE}, which is not installed",
                "",
                "Install it, python -m pip install 'autopeft[quantised]', or leave out --load-in.",
            )
        )
    if not has_gpu:
        problems.append(
            Problem(
                "model.load_in",
                f"{spec.load_in} needs a GPU, and torch sees none here",
                "",
                "Leave out --load-in, or run on a machine with a GPU; see `autopeft doctor`.",
            )
        )
    if problems:
        raise UserError(*problems)


def quantisation(load_in: Literal["4bit", "8bit"], whole: Sequence[str]) -> Any:
    """The `BitsAndBytesConfig`: NF4 with double quantisation and bfloat16 arithmetic (QLoRA), or LLM.int8().

    `whole` names the modules that stay as they are. QLoRA: Dettmers et al., NeurIPS 2023 (arXiv:2305.14314), eq. 5;
    LLM.int8(): Dettmers et al., NeurIPS 2022 (arXiv:2208.07339).
    """
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(whole))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(whole),
    )


def kept_whole(model: Any, new_parameters: Iterable[str]) -> tuple[str, ...]:
    """Modules that must not be quantised: the head that is trained, or the language model's own."""
    names = list(head_paths(model, new_parameters))
    output = model.get_output_embeddings()
    names += [name for name, module in model.named_modules() if output is not None and module is output]
    return tuple(names)


def norms_in_float32(model: nn.Module) -> None:
    """Put normalisations into float32, as QLoRA trains: their sums lose too much in half precision."""
    for module in model.modules():
        if type(module).__name__.endswith(("Norm", "LayerNorm")):
            module.float()


def quantised_layout(layout: ModelLayout, model: Any, load_in: Literal["4bit", "8bit"]) -> ModelLayout:
    """The layout of a plain model as it will be once it is loaded in so few bits; bytes are computed, not measured."""
    whole = kept_whole(model, ())
    saved = 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(name == path or name.startswith(f"{path}.") for path in whole):
            weight = module.weight
            saved += weight.numel() * (weight.element_size() - BITS_PER_WEIGHT[load_in] / 8)
    return layout.model_copy(update={"quantised": True, "weights_bytes": layout.weights_bytes - int(saved)})
