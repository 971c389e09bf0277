"""A part of each weight itself: SHiRA (entries drawn at random), Super-Tuning (the largest), OSF (singular directions).

SHiRA: Bhardwaj et al., NeurIPS 2024; Super-Tuning: arXiv:2607.09287; OSF: arXiv:2504.07097.
"""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.evaluate.methods.fit import linear_only, too_many
from autopeft.evaluate.methods.method import PeftMethod, modules_of

MASK_SEED = 0
"""Of the entries that SHiRA trains. They are saved with the adapter, and no part of the candidate."""


class Shira(PeftMethod):
    """As many entries of W as a LoRA of this rank has, at random places."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; more entries than a module has weights."""
        return linear_only(self.name, insertion, layout) or too_many("rank", "sides", insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * (in + out)."""
        rank = int(insertion.settings["rank"])
        return sum(rank * (module.in_features + module.out_features) for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.ShiraConfig`."""
        from peft import ShiraConfig

        return ShiraConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            r=int(insertion.settings["rank"]),
            random_seed=MASK_SEED,
        )


class Supertuning(PeftMethod):
    """The entries of W that are largest, or smallest, in magnitude."""

    def entries(self, insertion: Insertion, weights: int) -> int:
        """How many of the entries of a weight are trained: as peft rounds it."""
        return int(weights * (1 - float(insertion.settings["sparsity"])))

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; a sparsity that leaves nothing of a module to train."""
        found = linear_only(self.name, insertion, layout)
        weights = {module.in_features * module.out_features: module.role for module in modules_of(insertion, layout)}
        smallest = min(weights, default=0)
        if smallest and not found and not self.entries(insertion, smallest):
            text = f"{insertion.settings['sparsity']} leaves none of the {smallest} weights of {weights[smallest]}"
            found.append(Problem("sparsity", text, f"below {1 - 1 / smallest:.6g}", "Lower the sparsity."))
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of in * out * (1 - sparsity), rounded down."""
        return sum(
            self.entries(insertion, module.in_features * module.out_features)
            for module in modules_of(insertion, layout)
        )

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.SupertuningConfig`."""
        from peft import SupertuningConfig

        return SupertuningConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            sparsity=float(insertion.settings["sparsity"]),
            select_top=bool(insertion.settings["select_top"]),
        )


class Osf(PeftMethod):
    """Trains W's smallest singular directions and keeps the updates orthogonal to the largest."""

    def kept(self, insertion: Insertion, side: int) -> int:
        """How many directions stay frozen in a module whose smaller side is `side`: as peft rounds it."""
        return int(side * float(insertion.settings["effective_rank"]))

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`, which peft passes over in silence; a share that keeps no direction, or all of them."""
        found = linear_only(self.name, insertion, layout)
        sides = {min(module.in_features, module.out_features): module.role for module in modules_of(insertion, layout)}
        for side, role in sorted(sides.items()):
            kept = self.kept(insertion, side)
            if not found and not 0 < kept < side:
                share = insertion.settings["effective_rank"]
                text = f"{share} keeps {kept} of the {side} directions of {role}"
                found.append(Problem("effective_rank", text, f"{1 / side:.4g} to {1 - 1 / side:.4g}"))
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of (min(in, out) - k) * (in + out + 1), where k directions stay frozen."""
        total = 0
        for module in modules_of(insertion, layout):
            side = min(module.in_features, module.out_features)
            free = side - self.kept(insertion, side)
            total += free * (module.in_features + module.out_features + 1)
        return total

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.OSFConfig`; `effective_rank` is the share of directions that stay frozen."""
        from peft import OSFConfig

        return OSFConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            effective_rank=float(insertion.settings["effective_rank"]),
        )


METHODS = (
    Shira(
        MethodFacts(
            name="shira",
            title="SHiRA",
            paper="Bhardwaj et al., NeurIPS 2024 (arXiv:2406.13175)",
            summary="Entries of each weight at random places, as many as a LoRA of the same rank has.",
            settings={"rank": IntDomain(low=1, high=4096, log=True)},
            defaults={"rank": 8},
            knob="rank",
            ladder=(1, 2, 4, 8, 16, 32, 64),
            quantised=True,
        )
    ),
    Supertuning(
        MethodFacts(
            name="supertuning",
            title="Super-Tuning",
            paper="arXiv:2607.09287",
            summary="The entries of each weight that are largest in magnitude.",
            settings={
                "sparsity": FloatDomain(low=0.0, high=0.99999),
                "select_top": ChoiceDomain(values=(True, False)),
            },
            defaults={"sparsity": 0.99, "select_top": True},
            knob="sparsity",
            ladder=(0.999, 0.995, 0.99, 0.98, 0.95, 0.9),
        )
    ),
    Osf(
        MethodFacts(
            name="osf",
            title="OSF",
            paper="arXiv:2504.07097",
            summary="The smallest singular directions of each weight; the largest stay frozen.",
            settings={"effective_rank": FloatDomain(low=0.001, high=0.999)},
            defaults={"effective_rank": 0.95},
            knob="effective_rank",
            ladder=(0.98, 0.95, 0.9, 0.75, 0.5),
        )
    ),
)
