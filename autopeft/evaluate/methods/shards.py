"""One trained shard that is repeated over the whole weight: MiSS in its three forms.

Kang and Yin 2024; peft takes the form from `init_weights`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import IntDomain
from autopeft.evaluate.methods.fit import IN, OUT, divides
from autopeft.evaluate.methods.method import modules_of
from autopeft.evaluate.methods.of_linears import DROPOUT, LADDER, RANK, OfLinears

_PAPER = "Kang and Yin 2024 (arXiv:2409.15371)"


class Miss(OfLinears):
    """A matrix `[rank, out]` that is added to every `rank` columns of the weight."""

    config_class = "MissConfig"
    takes_conv1d = False
    bounded = None
    init_weights: ClassVar[bool | str] = True

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.MissConfig`."""
        found = {"r": insertion.settings["rank"], "init_weights": self.init_weights}
        names = {"dropout": "miss_dropout", "mini_r": "mini_r"}
        return found | {names[name]: value for name, value in insertion.settings.items() if name in names}

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Rank * out."""
        return int(insertion.settings["rank"]) * module.out_features

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank above the input width of a module, which it divides into shards."""
        return super().misfits(insertion, layout) + _longer_than_input(insertion, layout)


class Bat(Miss):
    """A square of `rank` by `rank` for every `rank` rows, that also mixes the columns of the frozen weight."""

    init_weights = "bat"

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """(out / rank) * rank^2 = rank * out."""
        return int(insertion.settings["rank"]) * module.out_features

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank that does not divide both sides of a module."""
        return super().misfits(insertion, layout) or divides("rank", (IN, OUT), insertion, layout)


class Mini(Miss):
    """A matrix `[rank, mini_r]` that is added to every block of this size."""

    init_weights = "mini"

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Rank * mini_r."""
        return int(insertion.settings["rank"]) * int(insertion.settings["mini_r"])

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A `mini_r` that does not divide the output width of a module."""
        return super().misfits(insertion, layout) or divides("mini_r", (OUT,), insertion, layout)


def _longer_than_input(insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    rank = int(insertion.settings["rank"])
    widths = sorted((module.in_features, str(module.role)) for module in modules_of(insertion, layout))
    if not widths or widths[0][0] >= rank:
        return []
    width, role = widths[0]
    found = f"{rank} is larger than the input of {role}, which is {width}"
    return [Problem("rank", found, f"1 to {width}", f"Lower the rank or leave {role} out.")]


METHODS = (
    Miss(
        MethodFacts(
            name="miss",
            title="MiSS",
            paper=_PAPER,
            summary="One matrix per linear module, added to every group of its columns.",
            settings={"rank": RANK, "dropout": DROPOUT},
            defaults={"rank": 32, "dropout": 0.0},
            knob="rank",
            ladder=LADDER,
            quantised=True,
        )
    ),
    Bat(
        MethodFacts(
            name="miss-bat",
            title="MiSS (Bat)",
            paper=_PAPER,
            summary="MiSS that also mixes the columns of the frozen weight; slower, it builds the whole weight.",
            settings={"rank": RANK},
            defaults={"rank": 32},
            knob="rank",
            ladder=LADDER,
            quantised=True,
        )
    ),
    Mini(
        MethodFacts(
            name="miss-mini",
            title="MiSS (mini)",
            paper=_PAPER,
            summary="MiSS with one small block, added all over the weight.",
            settings={"rank": RANK, "mini_r": IntDomain(low=1, high=4096, log=True), "dropout": DROPOUT},
            defaults={"rank": 32, "mini_r": 8, "dropout": 0.0},
            knob="rank",
            ladder=LADDER,
            quantised=True,
        )
    ),
)
