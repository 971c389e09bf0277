"""LoRA under an optimiser of its own: LoRA+ and LoRA-FA.

LoRA+: Hayou et al., ICML 2024, eq. 4: B learns `lr_ratio` times as fast as A; LoRA-FA: Zhang et al. 2023: A is frozen,
and B's gradient is corrected for it as peft's optimiser does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.domain.space import FloatDomain
from autopeft.evaluate.methods.lora import DEFAULTS, SETTINGS, Lora, facts
from autopeft.evaluate.methods.method import Calibration, modules_of

if TYPE_CHECKING:
    import torch


class LoraPlus(Lora):
    """LoRA whose B learns faster than its A; so do the biases of the head, as in peft and the paper's code."""

    def optimizer(
        self, peft_model: Any, insertion: Insertion, learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """AdamW in groups."""
        import torch
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(
            peft_model,
            torch.optim.AdamW,
            lr=learning_rate,
            loraplus_lr_ratio=float(insertion.settings["lr_ratio"]),
            loraplus_weight_decay=weight_decay,
        )


class LoraFa(Lora):
    """LoRA whose A stays random and frozen, so that no input of A has to be kept for the backward pass."""

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * out."""
        rank = int(insertion.settings["rank"])
        return sum(rank * module.out_features for module in modules_of(insertion, layout))

    def started(self, peft_model: Any, calibration: Calibration) -> None:
        """Freeze A at once: the optimiser would do it later, when the parameters have been counted."""
        for name, parameter in peft_model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)

    def optimizer(
        self, peft_model: Any, insertion: Insertion, learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """peft's LoRA-FA AdamW."""
        from peft.optimizers import create_lorafa_optimizer

        config = peft_model.peft_config["default"]
        return create_lorafa_optimizer(
            peft_model, r=config.r, lora_alpha=config.lora_alpha, lr=learning_rate, weight_decay=weight_decay
        )


METHODS = (
    LoraPlus(
        facts(
            "lora-plus",
            "LoRA+",
            "Hayou et al., ICML 2024 (arXiv:2402.12354)",
            "LoRA whose B learns faster than its A.",
            scales=True,
            settings={**SETTINGS, "lr_ratio": FloatDomain(low=1.0, high=64.0, log=True)},
            defaults={**DEFAULTS, "lr_ratio": 16.0},
            alone=True,
        )
    ),
    LoraFa(
        facts(
            "lora-fa",
            "LoRA-FA",
            "Zhang et al. 2023 (arXiv:2308.03303)",
            "LoRA that trains B only; A stays random, and its inputs need not be kept.",
            scales=True,
            alone=True,
        )
    ),
)
