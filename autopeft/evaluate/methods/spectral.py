"""Updates that are few numbers in another basis: FourierFT, WaveFT, C3A.

FourierFT: Gao et al., ICML 2024, eq. 2 to 4; WaveFT: arXiv:2505.12532; C3A: arXiv:2407.19342.
"""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import FloatDomain, IntDomain
from autopeft.evaluate.methods.fit import IN, OUT, divides, linear_only, too_many
from autopeft.evaluate.methods.method import PeftMethod, modules_of

FREQUENCIES = IntDomain(low=1, high=1 << 20, log=True)
SCALING = FloatDomain(low=1e-2, high=1e4, log=True)


class Coefficients(PeftMethod):
    """`W + scaling * T(c)`, where T is an inverse transform of a matrix that is zero but in `n_frequency` places."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """More coefficients than a module has weights."""
        return too_many("n_frequency", "entry", insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """n_frequency per module, whatever its size."""
        return int(insertion.settings["n_frequency"]) * len(modules_of(insertion, layout))


class FourierFt(Coefficients):
    """T is the real part of the inverse Fourier transform.

    The coefficients start at zero, as an update should. peft's default draws them from a normal distribution, which
    changes every weight by scaling * sqrt(n / 2) / (in * out): 0.006 at 768 by 768, but more than 0.02 at 384 by 384,
    half of what such weights are.
    """

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.FourierFTConfig`."""
        from peft import FourierFTConfig

        return FourierFTConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            n_frequency=int(insertion.settings["n_frequency"]),
            scaling=float(insertion.settings["scaling"]),
            init_weights=True,
        )


class WaveFt(Coefficients):
    """T is the inverse Haar transform of one level."""

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.WaveFTConfig`."""
        from peft import WaveFTConfig

        return WaveFTConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            n_frequency=int(insertion.settings["n_frequency"]),
            scaling=float(insertion.settings["scaling"]),
        )


class C3a(PeftMethod):
    """`W + C / in`, where C consists of circulant blocks; a larger block trains fewer numbers.

    They start at zero. peft's default draws them small enough to change nothing that matters, but not nothing.
    """

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`; a block that does not divide both widths."""
        return linear_only(self.name, insertion, layout) or divides("block_size", (IN, OUT), insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of in * out / block_size."""
        block = int(insertion.settings["block_size"])
        return sum(module.in_features * module.out_features // block for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.C3AConfig`."""
        from peft import C3AConfig

        return C3AConfig(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            block_size=int(insertion.settings["block_size"]),
            init_weights=True,
        )


METHODS = (
    FourierFt(
        MethodFacts(
            name="fourierft",
            title="FourierFT",
            paper="Gao et al., ICML 2024 (arXiv:2405.03003)",
            summary="A few entries of the Fourier transform of each weight's update.",
            settings={"n_frequency": FREQUENCIES, "scaling": SCALING},
            defaults={"n_frequency": 1000, "scaling": 150.0},
            knob="n_frequency",
            ladder=(125, 250, 500, 1000, 2000, 4000),
        )
    ),
    WaveFt(
        MethodFacts(
            name="waveft",
            title="WaveFT",
            paper="arXiv:2505.12532",
            summary="A few entries of the wavelet transform of each weight's update.",
            settings={"n_frequency": FREQUENCIES, "scaling": SCALING},
            defaults={"n_frequency": 2592, "scaling": 25.0},
            knob="n_frequency",
            ladder=(162, 324, 648, 1296, 2592, 5184),
        )
    ),
    C3a(
        MethodFacts(
            name="c3a",
            title="C3A",
            paper="arXiv:2407.19342",
            summary="Circulant blocks beside each linear module.",
            settings={"block_size": IntDomain(low=2, high=8192, log=True)},
            defaults={"block_size": 64},
            knob="block_size",
            ladder=(384, 128, 64, 32, 16, 8),
        )
    ),
)
