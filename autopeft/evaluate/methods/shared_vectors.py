"""Updates whose trained numbers are shared by modules and layers: VB-LoRA, Uni-LoRA, TinyLoRA, Lily.

What they train does not grow with the number of layers as LoRA does.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, ModuleLayout, TaskName
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import FloatDomain, IntDomain
from autopeft.evaluate.methods.fit import IN, OUT, divides
from autopeft.evaluate.methods.method import modules_of
from autopeft.evaluate.methods.of_linears import DROPOUT, LADDER, RANK, SCALE, OfLinears

_LENGTH = IntDomain(low=1, high=1 << 20, log=True)


class VbLora(OfLinears):
    """LoRA whose matrices are cut into pieces, each a mixture of a few vectors of one bank; Li et al., NeurIPS 2024."""

    config_class = "VBLoRAConfig"

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.VBLoRAConfig`."""
        names = ("num_vectors", "vector_length", "topk")
        return {
            "r": insertion.settings["rank"],
            "vblora_dropout": insertion.settings["dropout"],
            **{name: insertion.settings[name] for name in names},
        }

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Num_vectors * (vector_length + sum over the modules of rank * (in + out) / vector_length)."""
        given = {name: int(insertion.settings[name]) for name in ("rank", "num_vectors", "vector_length")}
        sides = sum(module.in_features + module.out_features for module in modules_of(insertion, layout))
        pieces = given["rank"] * sides // given["vector_length"]
        return given["num_vectors"] * (given["vector_length"] + pieces)

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Vectors that do not divide a side of a module, a choice of more vectors than there are."""
        found = super().misfits(insertion, layout) + divides("vector_length", (IN, OUT), insertion, layout)
        chosen, bank = int(insertion.settings["topk"]), int(insertion.settings["num_vectors"])
        if chosen > bank:
            found.append(Problem("topk", f"{chosen} is more than num_vectors, which is {bank}", f"1 to {bank}"))
        return found


class UniLora(OfLinears):
    """LoRA whose every entry is one of a few trained numbers, at random; arXiv:2506.00799."""

    config_class = "UniLoraConfig"

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.UniLoraConfig`."""
        return {
            "r": insertion.settings["rank"],
            "theta_d_length": insertion.settings["theta_d_length"],
            "unilora_dropout": insertion.settings["dropout"],
        }

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """`theta_d_length`, whatever the modules."""
        return int(insertion.settings["theta_d_length"])

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """More trained numbers than the matrices have entries: some would stand nowhere."""
        found = super().misfits(insertion, layout)
        rank, length = int(insertion.settings["rank"]), int(insertion.settings["theta_d_length"])
        entries = sum(rank * (one.in_features + one.out_features) for one in modules_of(insertion, layout))
        if length > entries:
            said = f"{length} is more than the {entries} entries of all matrices"
            found.append(Problem("theta_d_length", said, f"1 to {entries}", "Lower it or raise the rank."))
        return found


class TinyLora(OfLinears):
    """`B (sum of v_i P_i) A` with A and B from the weight's singular vectors and P random; trains v alone."""

    config_class = "TinyLoraConfig"

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.TinyLoraConfig`."""
        return {
            "r": insertion.settings["rank"],
            "u": insertion.settings["u"],
            "weight_tying": insertion.settings["weight_tying"],
            "tinylora_dropout": insertion.settings["dropout"],
        }

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """u * g; with n modules and m = max(1, n * (1 - weight_tying)), rounded, g = min(m, n / (n // m) rounded up).

        Modules are taken in groups of n // m that share a vector; the last group takes the rest.
        """
        modules = len(modules_of(insertion, layout))
        if not modules:
            return 0
        wanted = max(1, round(modules * (1.0 - float(insertion.settings["weight_tying"]))))
        size = max(1, modules // wanted)
        return int(insertion.settings["u"]) * min(wanted, -(-modules // size))


class Lily(OfLinears):
    """Inputs shared by neighbouring layers, outputs by all, mixed by a router; arXiv:2407.09946.

    The router averages over all tokens of the batch. So a prediction depends a little on the rows beside it, and in a
    language model a token would see those after it, in training but not when it generates: it is for classifiers.

    peft shares between modules that end alike, so that the targets are paths within a layer, with the layers apart;
    what else ends alike is excluded by name.
    """

    config_class = "LilyConfig"
    takes_conv1d = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.LilyConfig`."""
        chosen = layout.paths(insertion.layers, insertion.modules)
        ends = _ends(insertion, layout)
        others = [module.path for layer in layout.layers for module in layer.modules if module.path not in chosen]
        return {
            "target_modules": sorted(ends),
            "layers_to_transform": list(insertion.layers),
            "layers_pattern": layout.layers[0].path.rsplit(".", 2)[-2],
            "exclude_modules": [path for path in others if any(path.endswith(f".{end}") for end in ends)] or None,
            "r": insertion.settings["rank"],
            **{name: insertion.settings[name] for name in ("stride_A", "num_B", "scaling")},
        }

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Per role, in n layers: rank * (in * n / stride_A, rounded up, + num_B * out + num_B * n).

        Layers in which the role has another shape count as a role of their own.
        """
        rank, shared, stride = (int(insertion.settings[name]) for name in ("rank", "num_B", "stride_A"))
        alike = Counter((one.role, one.in_features, one.out_features) for one in modules_of(insertion, layout))
        return sum(
            rank * (wide * -(-layers // stride) + shared * high + shared * layers)
            for (_, wide, high), layers in alike.items()
        )

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Roles of one shape of which one path is the end of the other: peft would take them for the same."""
        found = super().misfits(insertion, layout)
        modules = {module.role: module for module in modules_of(insertion, layout)}
        for one in modules.values():
            for other in modules.values():
                alike = (one.in_features, one.out_features) == (other.in_features, other.out_features)
                if one is not other and alike and one.path.endswith("." + _end(other, layout)):
                    said = f"{self.name} cannot tell {one.role} from {other.role}, which has the same shape and name"
                    found.append(Problem("modules", said, "", f"Leave {one.role} or {other.role} out."))
        return found


def _ends(insertion: Insertion, layout: ModelLayout) -> set[str]:
    return {_end(module, layout) for module in modules_of(insertion, layout)}


def _end(module: ModuleLayout, layout: ModelLayout) -> str:
    """Its path within its layer."""
    layer = next(layer for layer in layout.layers if module.path.startswith(f"{layer.path}."))
    return module.path.removeprefix(f"{layer.path}.")


METHODS = (
    VbLora(
        MethodFacts(
            name="vblora",
            title="VB-LoRA",
            paper="Li et al., NeurIPS 2024 (arXiv:2405.15179)",
            summary="LoRA made of mixtures of vectors from one bank that all modules share.",
            settings={
                "num_vectors": IntDomain(low=2, high=4096, log=True),
                "vector_length": IntDomain(low=1, high=4096, log=True),
                "rank": RANK,
                "topk": IntDomain(low=1, high=64),
                "dropout": DROPOUT,
            },
            defaults={"num_vectors": 256, "vector_length": 32, "rank": 4, "topk": 2, "dropout": 0.0},
            knob="num_vectors",
            ladder=(16, 32, 64, 128, 256, 512),
            learning_rates=(1e-3, 3e-2),
        )
    ),
    UniLora(
        MethodFacts(
            name="unilora",
            title="Uni-LoRA",
            paper="Uni-LoRA: One Vector Is All You Need, 2025 (arXiv:2506.00799)",
            summary="One trained vector whose numbers are dealt out to the entries of all LoRA matrices.",
            settings={"theta_d_length": _LENGTH, "rank": RANK, "dropout": DROPOUT},
            defaults={"theta_d_length": 256, "rank": 4, "dropout": 0.0},
            knob="theta_d_length",
            ladder=(64, 256, 1024, 4096, 16384, 65536),
            learning_rates=(1e-3, 3e-2),
        )
    ),
    TinyLora(
        MethodFacts(
            name="tinylora",
            title="TinyLoRA",
            paper="Learning to Reason in 13 Parameters, 2026 (arXiv:2602.04118)",
            summary="A vector of a few numbers per module, or for several, between its first singular vectors.",
            settings={
                "u": IntDomain(low=1, high=65536, log=True),
                "rank": RANK,
                "weight_tying": FloatDomain(low=0.0, high=1.0),
                "dropout": DROPOUT,
            },
            defaults={"u": 64, "rank": 2, "weight_tying": 0.0, "dropout": 0.0},
            knob="u",
            ladder=(1, 4, 16, 64, 256),
            learning_rates=(1e-3, 1e-1),
        )
    ),
    Lily(
        MethodFacts(
            name="lily",
            title="Lily",
            paper="Low-Rank Interconnected Adaptation across Layers, 2024 (arXiv:2407.09946)",
            summary="LoRA with inputs shared by neighbouring layers and outputs by all, mixed per batch by a router.",
            settings={
                "rank": RANK,
                "stride_A": IntDomain(low=1, high=64),
                "num_B": IntDomain(low=2, high=64),
                "scaling": SCALE,
            },
            defaults={"rank": 32, "stride_A": 1, "num_B": 2, "scaling": 1.0},
            knob="rank",
            ladder=LADDER,
            merges=False,
            tasks=frozenset({TaskName.SEQUENCE_CLASSIFICATION}),
        )
    ),
)
