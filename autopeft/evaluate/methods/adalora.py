"""AdaLoRA: Zhang et al., ICLR 2023 (arXiv:2303.10512): updates in SVD form whose ranks shrink during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import FloatDomain, IntDomain
from autopeft.evaluate.methods.checks import narrower_than
from autopeft.evaluate.methods.method import Calibration, PeftMethod, modules_of

_INTERVALS = 100
"""The budget is cut some so many times, or at every step where there are fewer."""
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What peft's allocator keeps from step to step: tensors by the name of the parameter that they are of."""


class AdaLora(PeftMethod):
    """`rank` singular values per module at first, on average `target_share` of them in the end (eq. 3 and 12)."""

    exact_in_half_precision = False  # peft keeps the number of ranks, a divisor, in the base's dtype

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank above a module's smaller side."""
        return narrower_than("rank", insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * (in + out + 1), as at the start; values that fall away stay zero."""
        rank = int(insertion.settings["rank"])
        return sum(rank * (module.in_features + module.out_features + 1) for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.AdaLoraConfig`: a tenth of the steps at the full rank, the last three tenths at the final one."""
        from peft import AdaLoraConfig

        rank = int(insertion.settings["rank"])
        alpha = float(insertion.settings["alpha_ratio"]) * rank
        return AdaLoraConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            init_r=rank,
            target_r=min(rank - 1, max(1, round(float(insertion.settings["target_share"]) * rank))),
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            lora_dropout=float(insertion.settings["dropout"]),
            tinit=steps // 10,
            tfinal=3 * steps // 10,
            deltaT=max(1, steps // _INTERVALS),
            total_step=steps,
        )

    def started(self, peft_model: Any, calibration: Calibration) -> None:
        """Freeze the counters of ranks: where peft casts the adapter of a half-precision base, it lets them train."""
        for name, parameter in peft_model.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)

    def after_step(self, peft_model: Any, step: int) -> None:
        """Score the singular values by their gradients and keep as many as the budget allows."""
        config = peft_model.peft_config["default"]
        if config.total_step - config.tfinal > 1:  # in a single step there is nothing to score by
            peft_model.base_model.update_and_allocate(step)

    def state(self, peft_model: Any) -> dict[str, Any]:
        """Averages of sensitivity and of its uncertainty, and which singular values are kept at present."""
        allocator = peft_model.base_model.rankallocator
        return {
            **{name: dict(getattr(allocator, name)) for name in _AVERAGES},
            "rank_pattern": peft_model.peft_config["default"].rank_pattern,
        }

    def load(self, peft_model: Any, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        allocator = peft_model.base_model.rankallocator
        devices = {name: parameter.device for name, parameter in peft_model.base_model.model.named_parameters()}
        for name in _AVERAGES:
            setattr(allocator, name, {key: value.to(devices[key]) for key, value in state[name].items()})
        peft_model.peft_config["default"].rank_pattern = state["rank_pattern"]


METHODS = (
    AdaLora(
        MethodFacts(
            name="adalora",
            title="AdaLoRA",
            paper="Zhang et al., ICLR 2023 (arXiv:2303.10512)",
            summary="Updates in the form of singular values and vectors, of which training keeps the important ones.",
            settings={
                "rank": IntDomain(low=2, high=4096, log=True),
                "target_share": FloatDomain(low=0.05, high=0.95),
                "alpha_ratio": FloatDomain(low=1e-3, high=1e3, log=True),
                "dropout": FloatDomain(low=0.0, high=0.9),
            },
            defaults={"rank": 12, "target_share": 2 / 3, "alpha_ratio": 2.0, "dropout": 0.0},
            knob="rank",
            ladder=(2, 3, 6, 12, 24, 48),
            quantised=True,
            alone=True,
        )
    ),
)
