"""Updates that are Hadamard or Kronecker products: LoHa, LoKr, HiRA."""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain
from autopeft.evaluate.methods.of_linears import DROPOUT, LADDER, RANK, SCALE, OfLinears, alpha_of


class LoHa(OfLinears):
    """The Hadamard product of two low-rank matrices, `scale * (B1 A1) o (B2 A2)`: of rank up to `rank` squared.

    Hyeon-Woo et al., ICLR 2022 (FedPara), proposition 1.
    """

    config_class = "LoHaConfig"
    takes_conv1d = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.LoHaConfig`."""
        return {"r": insertion.settings["rank"], "alpha": alpha_of(insertion)}

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """2 * rank * (in + out)."""
        return 2 * int(insertion.settings["rank"]) * (module.in_features + module.out_features)


class LoKr(OfLinears):
    """The Kronecker product of a small whole matrix and a low-rank one; Yeh et al., ICLR 2024."""

    config_class = "LoKrConfig"
    takes_conv1d = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.LoKrConfig`."""
        return {
            "r": insertion.settings["rank"],
            "alpha": alpha_of(insertion),
            "decompose_factor": insertion.settings["decompose_factor"],
        }

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """With in = a * b and out = c * d: a * c, and rank * (b + d), or b * d where 2 * rank >= max(b, d)."""
        rank, factor = int(insertion.settings["rank"]), int(insertion.settings["decompose_factor"])
        a, b = factors(module.in_features, factor)
        c, d = factors(module.out_features, factor)
        return a * c + (b * d if 2 * rank >= max(b, d) else rank * (b + d))


class Hira(OfLinears):
    """The frozen weight times a low-rank matrix, entry by entry, `W + W o (B A)`; Huang et al., ICLR 2025."""

    config_class = "HiraConfig"

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.HiraConfig`."""
        return {"r": insertion.settings["rank"], "hira_dropout": insertion.settings["dropout"]}

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Rank * (in + out)."""
        return int(insertion.settings["rank"]) * (module.in_features + module.out_features)


def factors(width: int, factor: int) -> tuple[int, int]:
    """Two numbers with this product, the smaller first: the pair nearest to a square whose smaller is within `factor`.

    A factor that divides the width is taken as it is, and then comes first whether smaller or not; -1 is no bound.
    """
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    within = width if factor == -1 else factor
    small = max(one for one in range(1, int(width**0.5) + 1) if width % one == 0 and (one <= within or one == 1))
    return small, width // small


METHODS = (
    LoHa(
        MethodFacts(
            name="loha",
            title="LoHa",
            paper="Hyeon-Woo et al., ICLR 2022 (arXiv:2108.06098)",
            summary="Two low-rank matrices beside each linear module, multiplied entry by entry.",
            settings={"rank": RANK, "alpha_ratio": SCALE},
            defaults={"rank": 8, "alpha_ratio": 1.0},
            knob="rank",
            ladder=LADDER,
            learning_rates=(3e-4, 2e-2),
        )
    ),
    LoKr(
        MethodFacts(
            name="lokr",
            title="LoKr",
            paper="Yeh et al., ICLR 2024 (arXiv:2309.14859)",
            summary="The Kronecker product of a small matrix and a low-rank one beside each linear module.",
            settings={
                "rank": RANK,
                "alpha_ratio": SCALE,
                "decompose_factor": ChoiceDomain(values=(-1, 2, 4, 8, 16, 32), ordered=False),
            },
            defaults={"rank": 8, "alpha_ratio": 1.0, "decompose_factor": -1},
            knob="rank",
            ladder=(1, 2, 4, 8, 16),
            learning_rates=(3e-4, 2e-2),
        )
    ),
    Hira(
        MethodFacts(
            name="hira",
            title="HiRA",
            paper="Huang et al., ICLR 2025 (openreview:TwJrTz9cRS)",
            summary="Two thin matrices whose product scales the entries of each frozen weight.",
            settings={"rank": RANK, "dropout": DROPOUT},
            defaults={"rank": 32, "dropout": 0.0},
            knob="rank",
            ladder=LADDER,
            learning_rates=(1e-3, 5e-2),
            quantised=True,
        )
    ),
)
