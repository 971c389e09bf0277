"""Updates made of frozen random matrices that all modules share, scaled by trained vectors: VeRA, PVeRA, RandLoRA.

The matrices are drawn from peft's fixed key, the same in every trial, and are saved with the adapter.
"""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain, FloatDomain
from autopeft.evaluate.methods.of_linears import DROPOUT, RANK, SCALE, OfLinears, alpha_of

_START = FloatDomain(low=1e-7, high=1.0, log=True)
_WIDE = (1, 4, 16, 64, 256, 1024)


class Vera(OfLinears):
    """`diag(b) B diag(d) A` with frozen A and B; Kopiczko et al., ICLR 2024, eq. 2."""

    config_class = "VeraConfig"
    bounded = None  # ranks above the width are usual: they cost one number each

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.VeraConfig`."""
        return {
            "r": insertion.settings["rank"],
            "d_initial": insertion.settings["d_initial"],
            "vera_dropout": insertion.settings["dropout"],
        }

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Out + rank."""
        return module.out_features + int(insertion.settings["rank"])


class Pvera(Vera):
    """VeRA with a mean and a variance instead of each value between A and B, drawn from while it trains."""

    config_class = "PveraConfig"

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.PveraConfig`."""
        return {
            "r": insertion.settings["rank"],
            "d_initial": insertion.settings["d_initial"],
            "pvera_dropout": insertion.settings["dropout"],
        }

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Out + 2 * rank: means and logarithms of variances."""
        return module.out_features + 2 * int(insertion.settings["rank"])


class RandLora(OfLinears):
    """A sum of as many frozen products of low rank as make up full rank, each scaled; Albert et al., ICLR 2025.

    A smaller rank means more of them, and more to train.
    """

    config_class = "RandLoraConfig"

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.RandLoraConfig`."""
        return {
            "r": insertion.settings["rank"],
            "randlora_alpha": alpha_of(insertion),
            "sparse": insertion.settings["sparse"],
            "randlora_dropout": insertion.settings["dropout"],
        }

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """n * (rank + m), where m = min(in, out) and n = m / rank, rounded up, is the number of products."""
        rank = int(insertion.settings["rank"])
        narrow = min(module.in_features, module.out_features)
        return -(-narrow // rank) * (rank + narrow)


METHODS = (
    Vera(
        MethodFacts(
            name="vera",
            title="VeRA",
            paper="Kopiczko et al., ICLR 2024 (arXiv:2310.11454)",
            summary="Two vectors per linear module that scale frozen random matrices shared by all of them.",
            settings={"rank": RANK, "d_initial": _START, "dropout": DROPOUT},
            defaults={"rank": 256, "d_initial": 0.1, "dropout": 0.0},
            knob="rank",
            ladder=_WIDE,
            learning_rates=(1e-3, 5e-2),
            quantised=True,
        )
    ),
    Pvera(
        MethodFacts(
            name="pvera",
            title="PVeRA",
            paper="PVeRA: Probabilistic Vector-based Random Matrix Adaptation, 2025 (arXiv:2512.07703)",
            summary="VeRA whose inner values are drawn from a trained distribution; predictions take its mean.",
            settings={"rank": RANK, "d_initial": _START, "dropout": DROPOUT},
            defaults={"rank": 256, "d_initial": 0.1, "dropout": 0.0},
            knob="rank",
            ladder=_WIDE,
            learning_rates=(1e-3, 5e-2),
            quantised=True,
        )
    ),
    RandLora(
        MethodFacts(
            name="randlora",
            title="RandLoRA",
            paper="Albert et al., ICLR 2025 (arXiv:2502.00987)",
            summary="Scales of frozen random products that together reach full rank; a lower rank trains more.",
            settings={
                "rank": RANK,
                "alpha_ratio": SCALE,
                "sparse": ChoiceDomain(values=(False, True)),
                "dropout": DROPOUT,
            },
            defaults={"rank": 32, "alpha_ratio": 20.0, "sparse": False, "dropout": 0.0},
            knob="rank",
            ladder=(256, 128, 64, 32, 16, 8),
            quantised=True,
        )
    ),
)
