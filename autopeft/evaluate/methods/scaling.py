"""Vectors instead of matrices: (IA)3 scales activations, BEFT shifts them, LN tuning trains copies of the norms.

(IA)3: Liu et al., NeurIPS 2022, section 3.3; BEFT: arXiv:2509.15974; LN tuning: Zhao et al., ICLR 2024.
"""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, NormLayout, Role
from autopeft.domain.method import MethodFacts
from autopeft.evaluate.methods.checks import layers_without
from autopeft.evaluate.methods.fit import linear_only
from autopeft.evaluate.methods.method import PeftMethod, modules_of


class Ia3(PeftMethod):
    """A factor per output of each module; per input of `ffn.out`, where the paper scales between the two matrices."""

    def default_modules(self, layout: ModelLayout) -> tuple[str, ...]:
        """Keys, values and the inside of the feed-forward part, as in the paper; one fused matrix for the first two."""
        roles = layout.roles()
        attention = (Role.KEY, Role.VALUE) if {Role.KEY, Role.VALUE} <= set(roles) else (Role.QKV,)
        return tuple(sorted(role.value for role in (*attention, Role.FFN_OUT) if role in roles))

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of out; of in for `ffn.out`."""
        return sum(
            module.in_features if module.role == Role.FFN_OUT else module.out_features
            for module in modules_of(insertion, layout)
        )

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.IA3Config`."""
        from peft import IA3Config

        inside = tuple(role for role in insertion.modules if role == Role.FFN_OUT)
        return IA3Config(
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            feedforward_modules=list(layout.paths(insertion.layers, inside)),
        )


class Beft(PeftMethod):
    """A bias per output of each module, beside the one that it may have."""

    def default_modules(self, layout: ModelLayout) -> tuple[str, ...]:
        """The values, as in the paper; one fused matrix where they are no module of their own."""
        roles = layout.roles()
        return tuple(role.value for role in (Role.VALUE, Role.QKV) if role in roles)[:1]

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """`Conv1D`."""
        return linear_only(self.name, insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of out."""
        return sum(module.out_features for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.BeftConfig`."""
        from peft import BeftConfig

        return BeftConfig(target_modules=list(layout.paths(insertion.layers, insertion.modules)))


class LnTuning(PeftMethod):
    """A trained copy of every norm of the layers; norms before the first and behind the last layer stay as they are."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Layers without norms that have weights."""
        bare = [index for index in insertion.layers if not layout.layers[index].norms]
        if not bare:
            return []
        text = layers_without(bare, layout, "norm with weights")
        return [Problem("layers", text, "", "Leave these layers or the method out.")]

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the norms of the layers of their weights and biases."""
        return sum(norm.parameters for norm in self._norms(insertion, layout))

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """The norms, and their parameters, which another method may train in place."""
        paths = [norm.path for norm in self._norms(insertion, layout)]
        return frozenset(path + part for path in paths for part in ("", ".weight", ".bias"))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.LNTuningConfig`."""
        from peft import LNTuningConfig

        return LNTuningConfig(target_modules=[norm.path for norm in self._norms(insertion, layout)])

    @staticmethod
    def _norms(insertion: Insertion, layout: ModelLayout) -> list[NormLayout]:
        return [norm for index in insertion.layers for norm in layout.layers[index].norms]


METHODS = (
    Ia3(
        MethodFacts(
            name="ia3",
            title="(IA)3",
            paper="Liu et al., NeurIPS 2022 (arXiv:2205.05638)",
            summary="A factor per key, value and inner activation of the feed-forward part.",
            settings={},
            quantised=True,
        )
    ),
    Beft(
        MethodFacts(
            name="beft",
            title="BEFT",
            paper="arXiv:2509.15974",
            summary="A bias per value, beside the one that the model may have.",
            settings={},
            merges=False,  # only into modules that have a bias, and many decoders have none
        )
    ),
    LnTuning(
        MethodFacts(
            name="ln-tuning",
            title="LN Tuning",
            paper="Zhao et al., ICLR 2024 (arXiv:2312.11420)",
            summary="Copies of the norms of the layers.",
            settings={},
            takes_modules=False,
        )
    ),
)
