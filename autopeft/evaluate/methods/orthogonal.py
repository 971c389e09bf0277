"""Methods that turn weights instead of adding to them: OFT, BOFT, HRA, PSOFT, RoAd.

OFT: Qiu et al., NeurIPS 2023; BOFT: Liu et al., ICLR 2024; HRA: Yuan et al., NeurIPS 2024; PSOFT: arXiv:2505.11235;
RoAd: Liao & Monz, NeurIPS 2024.
"""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain, IntDomain
from autopeft.evaluate.methods.checks import narrower_than
from autopeft.evaluate.methods.fit import IN, divides, group_of, linear_only, wider_than
from autopeft.evaluate.methods.method import PeftMethod, modules_of

ROAD_GROUP = 64
"""Pairs are formed within groups of so many outputs, peft's default; it decides nothing but the speed of serving."""
ROAD_FACTORS = {"road_1": 1, "road_2": 2, "road_4": 4}


class Oft(PeftMethod):
    """`W R`, where R is block-diagonal and each block orthogonal (OFT, eq. 3)."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; a block that does not divide the input width, which peft would change in silence."""
        return linear_only(self.name, insertion, layout) or divides("oft_block_size", (IN,), insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of (in / b) * b (b - 1) / 2: one skew-symmetric matrix per block of b inputs."""
        block = int(insertion.settings["oft_block_size"])
        return sum(module.in_features * (block - 1) // 2 for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.OFTConfig`; rotations by the Cayley-Neumann series, as peft has it by default."""
        from peft import OFTConfig

        return OFTConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            oft_block_size=int(insertion.settings["oft_block_size"]),
        )


class Boft(PeftMethod):
    """OFT whose outputs are scaled too.

    One butterfly factor: more need a CUDA kernel that peft compiles when first used, and without it peft takes one
    factor in silence, so that a search would train another thing than it proposed.
    """

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; a block that does not divide the input width."""
        return linear_only(self.name, insertion, layout) or divides("boft_block_size", (IN,), insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of (in / b) * b * b + out: a square matrix per block, and a scale per output."""
        block = int(insertion.settings["boft_block_size"])
        return sum(module.in_features * block + module.out_features for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.BOFTConfig`."""
        from peft import BOFTConfig

        return BOFTConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            boft_block_size=int(insertion.settings["boft_block_size"]),
            boft_n_butterfly_factor=1,
        )


class Hra(PeftMethod):
    """`W H_1 ... H_r`, a chain of Householder reflections (HRA, eq. 3); pairs of equal ones at the start cancel out."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; an odd rank, whose last reflection would have no pair; more reflections than inputs."""
        found = linear_only(self.name, insertion, layout) or wider_than("rank", IN, insertion, layout)
        rank = int(insertion.settings["rank"])
        if rank % 2:
            allowed = f"{rank - 1} or {rank + 1}" if rank > 1 else "2"
            found.append(Problem("rank", f"{rank} is odd, so that the model would start mirrored", allowed))
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * in."""
        return sum(int(insertion.settings["rank"]) * module.in_features for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.HRAConfig`."""
        from peft import HRAConfig

        return HRAConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            r=int(insertion.settings["rank"]),
            apply_GS=bool(insertion.settings["apply_GS"]),
        )


class Psoft(PeftMethod):
    """`W + B (diag(b) R diag(a) - I) A`, where B A are W's largest singular directions and R is orthogonal."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; a rank above a module's smaller side."""
        return linear_only(self.name, insertion, layout) or narrower_than("rank", insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Per module rank (rank - 1) / 2 of the rotation and 2 rank of the two scalings, whatever its size."""
        rank = int(insertion.settings["rank"])
        return (rank * (rank - 1) // 2 + 2 * rank) * len(modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.PsoftConfig`; alpha is the rank, but cancels out: B is divided by the scale that it is read with."""
        from peft import PsoftConfig

        rank = int(insertion.settings["rank"])
        return PsoftConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)), r=rank, psoft_alpha=rank
        )


class Road(PeftMethod):
    """Pairs of outputs, each turned and scaled (RoAd, eq. 4)."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; an odd number of outputs."""
        found = linear_only(self.name, insertion, layout)
        odd = sorted({str(module.role) for module in modules_of(insertion, layout) if module.out_features % 2})
        if odd and not found:
            found.append(
                Problem("modules", f"{', '.join(odd)} have an odd number of outputs, no pairs", "", "Leave them out.")
            )
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of f * out: an angle and a scale per pair (road_1, f = 1), output (2) or entry (4)."""
        factor = ROAD_FACTORS[str(insertion.settings["variant"])]
        return sum(factor * module.out_features for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.RoadConfig`."""
        from peft import RoadConfig

        return RoadConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            variant=str(insertion.settings["variant"]),
            group_size=group_of(ROAD_GROUP, modules_of(insertion, layout)),
        )


METHODS = (
    Oft(
        MethodFacts(
            name="oft",
            title="OFT",
            paper="Qiu et al., NeurIPS 2023 (arXiv:2306.07280)",
            summary="A rotation of the inputs of each linear module, in blocks.",
            settings={"oft_block_size": IntDomain(low=2, high=4096, log=True)},
            defaults={"oft_block_size": 32},
            knob="oft_block_size",
            ladder=(2, 4, 8, 16, 32, 64),
            quantised=True,
        )
    ),
    Boft(
        MethodFacts(
            name="boft",
            title="BOFT",
            paper="Liu et al., ICLR 2024 (arXiv:2311.06243)",
            summary="A rotation of the inputs in blocks, and a scale per output; with one butterfly factor.",
            settings={"boft_block_size": IntDomain(low=2, high=4096, log=True)},
            defaults={"boft_block_size": 8},
            knob="boft_block_size",
            ladder=(2, 4, 8, 16, 32),
            quantised=True,
        )
    ),
    Hra(
        MethodFacts(
            name="hra",
            title="HRA",
            paper="Yuan et al., NeurIPS 2024 (arXiv:2405.17484)",
            summary="A chain of Householder reflections of the inputs of each linear module.",
            settings={"rank": IntDomain(low=2, high=4096, log=True), "apply_GS": ChoiceDomain(values=(False, True))},
            defaults={"rank": 8, "apply_GS": False},
            knob="rank",
            ladder=(2, 4, 8, 16, 32),
        )
    ),
    Psoft(
        MethodFacts(
            name="psoft",
            title="PSOFT",
            paper="arXiv:2505.11235",
            summary="A rotation and two scalings within the largest singular directions of each weight.",
            settings={"rank": IntDomain(low=2, high=4096, log=True)},
            defaults={"rank": 32},
            knob="rank",
            ladder=(4, 8, 16, 32, 64, 128),
        )
    ),
    Road(
        MethodFacts(
            name="road",
            title="RoAd",
            paper="Liao & Monz, NeurIPS 2024 (arXiv:2409.00119)",
            summary="Pairs of outputs of each linear module, turned and scaled.",
            settings={"variant": ChoiceDomain(values=tuple(ROAD_FACTORS), ordered=True)},
            defaults={"variant": "road_1"},
            knob="variant",
            ladder=tuple(ROAD_FACTORS),
            quantised=True,
        )
    ),
)
