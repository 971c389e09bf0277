"""LoRA and its relatives that differ in scale, form or in a starting point that is found in the weights alone.

LoRA: Hu et al., ICLR 2022, eq. 3; rsLoRA: Kalajdzievski 2023, scale alpha / sqrt(rank); DoRA: Liu et al., ICML 2024,
eq. 5; PiSSA: Meng et al., NeurIPS 2024, eq. 2 to 4; OLoRA: Büyükakyüz 2024, eq. 3 to 5; MiCA: arXiv:2604.01694.
"""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import Domain, FloatDomain, IntDomain
from autopeft.evaluate.methods.checks import narrower_than
from autopeft.evaluate.methods.fit import linear_only
from autopeft.evaluate.methods.method import PeftMethod, modules_of

SETTINGS: dict[str, Domain] = {
    "rank": IntDomain(low=1, high=4096, log=True),
    "alpha_ratio": FloatDomain(low=1e-3, high=1e3, log=True),
    "dropout": FloatDomain(low=0.0, high=0.9),
}
DEFAULTS = {"rank": 8, "alpha_ratio": 2.0, "dropout": 0.0}
LADDER = (1, 2, 4, 8, 16, 32, 64)


def facts(name: str, title: str, paper: str, summary: str, **changes: Any) -> MethodFacts:
    """The facts of a relative of LoRA, where `changes` say nothing else."""
    shared: dict[str, Any] = {
        "settings": SETTINGS,
        "defaults": DEFAULTS,
        "knob": "rank",
        "ladder": LADDER,
        "quantised": True,
    }
    return MethodFacts(name=name, title=title, paper=paper, summary=summary, **{**shared, **changes})


class Lora(PeftMethod):
    """A product of two thin matrices beside each chosen linear module, `W + scale * B A`."""

    def __init__(self, facts: MethodFacts, changes_base: bool = False, **arguments: Any) -> None:
        """`arguments` are of `peft.LoraConfig`."""
        super().__init__(facts)
        self._arguments = arguments
        self._changes_base = changes_base

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank above a module's smaller side."""
        return narrower_than("rank", insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * (in + out); DoRA has `out` magnitudes more per module."""
        rank = int(insertion.settings["rank"])
        magnitudes = 1 if self._arguments.get("use_dora") else 0
        return sum(
            rank * (module.in_features + module.out_features) + magnitudes * module.out_features
            for module in modules_of(insertion, layout)
        )

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.LoraConfig`; alpha is `alpha_ratio * rank`."""
        from peft import LoraConfig

        rank = int(insertion.settings["rank"])
        alpha = float(insertion.settings["alpha_ratio"]) * rank
        return LoraConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            r=rank,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            lora_dropout=float(insertion.settings["dropout"]),
            **self._arguments,
        )

    def changes_base(self, insertion: Insertion) -> bool:
        """Whether the first product of the two matrices is taken out of the base, so that only the rest is frozen.

        Such a method must stand alone: what is saved is the difference to the first product.
        """
        return self._changes_base


class Olora(Lora):
    """Starts from the first columns and rows of the QR decomposition of the weight."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """As LoRA, and weights that are held transposed, which peft decomposes the wrong way round."""
        return super().misfits(insertion, layout) + linear_only("OLoRA", insertion, layout)


class Mica(Lora):
    """Trains A only; B holds the left singular vectors of the smallest singular values."""

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * in."""
        rank = int(insertion.settings["rank"])
        return sum(rank * module.in_features for module in modules_of(insertion, layout))


METHODS = (
    Lora(
        facts(
            "lora",
            "LoRA",
            "Hu et al., ICLR 2022 (arXiv:2106.09685)",
            "Two thin matrices beside each linear module, whose product is added to its weight.",
            scales=True,
        )
    ),
    Lora(
        facts(
            "rslora",
            "rsLoRA",
            "Kalajdzievski 2023 (arXiv:2312.03732)",
            "LoRA whose update is divided by the root of the rank, so that high ranks learn as fast as low ones.",
            scales=True,
        ),
        use_rslora=True,
    ),
    Lora(
        facts(
            "dora",
            "DoRA",
            "Liu et al., ICML 2024 (arXiv:2402.09353)",
            "LoRA on the direction of each weight column, and its magnitude beside it.",
            scales=True,
        ),
        use_dora=True,
    ),
    Lora(
        facts(
            "pissa",
            "PiSSA",
            "Meng et al., NeurIPS 2024 (arXiv:2404.02948)",
            "LoRA that starts from the largest singular values and freezes the rest.",
            defaults={**DEFAULTS, "alpha_ratio": 1.0},
            quantised=False,
            alone=True,
        ),
        changes_base=True,
        init_lora_weights="pissa",
    ),
    Olora(
        facts(
            "olora",
            "OLoRA",
            "Büyükakyüz 2024 (arXiv:2406.01775)",
            "LoRA that starts from the first columns of an orthonormal basis of the weight and freezes the rest.",
            defaults={**DEFAULTS, "alpha_ratio": 1.0},
            quantised=False,
            alone=True,
        ),
        changes_base=True,
        init_lora_weights="olora",
    ),
    Mica(
        facts(
            "mica",
            "MiCA",
            "2026 (arXiv:2604.01694)",
            "LoRA that trains A only; B stays on the directions in which the weight is weakest.",
            scales=True,
            quantised=False,
        ),
        init_lora_weights="mica",
    ),
)
