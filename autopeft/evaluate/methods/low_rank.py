"""Other forms of a low-rank update: DeLoRA, GraLoRA, GLoRA, PEANuT."""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.evaluate.methods.fit import IN, OUT, divides
from autopeft.evaluate.methods.of_linears import DROPOUT, LADDER, RANK, SCALE, OfLinears, alpha_of


class Delora(OfLinears):
    """LoRA with every rank-one part of length one, scaled by a trained bound; Bini et al., ICLR 2025."""

    config_class = "DeloraConfig"
    takes_conv1d = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.DeloraConfig`."""
        return {"r": insertion.settings["rank"], "delora_lambda": insertion.settings["delora_lambda"]}

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Rank * (in + out) + 1."""
        return int(insertion.settings["rank"]) * (module.in_features + module.out_features) + 1


class Gralora(OfLinears):
    """A grid of `gralora_k` by `gralora_k` small low-rank updates; Jung et al. 2025."""

    config_class = "GraloraConfig"

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.GraloraConfig`."""
        return {
            "r": insertion.settings["rank"],
            "alpha": alpha_of(insertion),
            "gralora_k": insertion.settings["gralora_k"],
            "gralora_dropout": insertion.settings["dropout"],
        }

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Rank * (in + out), whatever the grid."""
        return int(insertion.settings["rank"]) * (module.in_features + module.out_features)

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A grid that does not divide the rank, or a side of a module."""
        found = super().misfits(insertion, layout)
        rank, grid = int(insertion.settings["rank"]), int(insertion.settings["gralora_k"])
        if rank % grid:
            found.append(Problem("rank", f"{rank} is no multiple of gralora_k, which is {grid}", "", "Change one."))
        return found or divides("gralora_k", (IN, OUT), insertion, layout)


class Glora(OfLinears):
    """`W + W o A + B` and, where there is a bias, `b + b o D + E + W C`; Chavan et al. 2023."""

    config_class = "GloraConfig"
    takes_conv1d = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.GloraConfig`."""
        forms = ("config_A_B", "config_C", "config_D_E")
        return {"r": insertion.settings["rank"], **{form: insertion.settings[form] for form in forms}}

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """A and B: 2 * rank * (in + out), or 2 * out, or 2. With a bias also C, and D and E.

        C: rank * (in + 1), or in, or 0. D and E: 2 * out, or 2, or 0.
        """
        rank, given = int(insertion.settings["rank"]), insertion.settings
        wide, high = module.in_features, module.out_features
        matrices = {"lora": 2 * rank * (wide + high), "vector": 2 * high, "constant": 2}
        if not module.bias:
            return matrices[str(given["config_A_B"])]
        couplings = {"lora": rank * (wide + 1), "vector": wide, "none": 0}
        biases = {"vector": 2 * high, "constant": 2, "none": 0}
        return matrices[str(given["config_A_B"])] + couplings[str(given["config_C"])] + biases[str(given["config_D_E"])]


class Peanut(OfLinears):
    """A small network that makes the update out of the frozen weight's own columns; arXiv:2410.01870."""

    config_class = "PeanutConfig"
    takes_conv1d = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.PeanutConfig`."""
        names = ("depth", "act_fn", "scaling")
        return {"r": insertion.settings["rank"], **{name: insertion.settings[name] for name in names}}

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """2 * rank * out + 2 * depth * rank^2."""
        rank, depth = int(insertion.settings["rank"]), int(insertion.settings["depth"])
        return 2 * rank * module.out_features + 2 * depth * rank * rank


METHODS = (
    Delora(
        MethodFacts(
            name="delora",
            title="DeLoRA",
            paper="Bini et al., ICLR 2025 (arXiv:2503.18225)",
            summary="LoRA whose directions have length one and whose size is one trained bound per module.",
            settings={"rank": RANK, "delora_lambda": FloatDomain(low=0.01, high=1e3, log=True)},
            defaults={"rank": 8, "delora_lambda": 15.0},
            knob="rank",
            ladder=LADDER,
            learning_rates=(1e-3, 2e-2),
        )
    ),
    Gralora(
        MethodFacts(
            name="gralora",
            title="GraLoRA",
            paper="Jung et al. 2025 (arXiv:2505.20355)",
            summary="A grid of small low-rank updates in each weight, at LoRA's number of parameters.",
            settings={
                "rank": RANK,
                "gralora_k": ChoiceDomain(values=(2, 4, 8, 16), ordered=True),
                "alpha_ratio": SCALE,
                "dropout": DROPOUT,
            },
            defaults={"rank": 32, "gralora_k": 2, "alpha_ratio": 2.0, "dropout": 0.0},
            knob="rank",
            ladder=(2, 4, 8, 16, 32, 64, 128),
        )
    ),
    Glora(
        MethodFacts(
            name="glora",
            title="GLoRA",
            paper="Chavan et al. 2023 (arXiv:2306.07967)",
            summary="Low-rank or vector updates that scale and shift each weight and its bias.",
            settings={
                "rank": RANK,
                "config_A_B": ChoiceDomain(values=("constant", "vector", "lora")),
                "config_C": ChoiceDomain(values=("none", "vector", "lora")),
                "config_D_E": ChoiceDomain(values=("none", "constant", "vector")),
            },
            defaults={"rank": 8, "config_A_B": "lora", "config_C": "lora", "config_D_E": "constant"},
            knob="rank",
            ladder=LADDER,
        )
    ),
    Peanut(
        MethodFacts(
            name="peanut",
            title="PEANuT",
            paper="PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers, 2024 (arXiv:2410.01870)",
            summary="A small network per module that computes the update from the frozen weight.",
            settings={
                "rank": RANK,
                "depth": IntDomain(low=0, high=8),
                "act_fn": ChoiceDomain(values=("relu", "gelu", "silu", "tanh")),
                "scaling": SCALE,
            },
            defaults={"rank": 32, "depth": 0, "act_fn": "relu", "scaling": 1.0},
            knob="rank",
            ladder=LADDER,
        )
    ),
)
