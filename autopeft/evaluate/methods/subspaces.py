"""Updates inside subspaces that are found in the frozen weight: DEFT, PaRa, FRoD, AdaMSS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.evaluate.methods.method import modules_of
from autopeft.evaluate.methods.of_linears import DROPOUT, LADDER, RANK, OfLinears

_PROJECTION = ChoiceDomain(values=("relu", "qr"))
_ADAMSS = "AdaMSS: Adaptive Multi-Subspace Approach, NeurIPS 2025 (openreview:8ZdWmpYxT0)"
_CLUSTERS = {"rank": RANK, "num_subspaces": IntDomain(low=1, high=256, log=True)}
_USUAL: dict[str, Setting] = {"rank": 32, "num_subspaces": 5}
_AVERAGES = ("exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")
"""What peft keeps of each cluster from step to step."""


class Deft(OfLinears):
    """Take a subspace out of the weight and put a trained one in its place, `(I - Q P') W + Q R`."""

    config_class = "DeftConfig"
    para: ClassVar[bool] = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.DeftConfig`."""
        return {
            "r": insertion.settings["rank"],
            "decomposition_method": insertion.settings["decomposition_method"],
            "deft_dropout": insertion.settings.get("dropout", 0.0),
            "para": self.para,
        }

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Rank * (in + out)."""
        return int(insertion.settings["rank"]) * (module.in_features + module.out_features)


class Para(Deft):
    """DEFT that only takes out; it cannot start from the untouched weight."""

    para = True

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Rank * out."""
        return int(insertion.settings["rank"]) * module.out_features


class Frod(OfLinears):
    """The weight as `U (L + S) V'` with V shared by the layers; trains the diagonal L and a sparse S."""

    config_class = "FrodConfig"
    bounded = None

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.FrodConfig`."""
        return {
            "sparse_rate": insertion.settings["sparse_rate"],
            "frod_dropout": insertion.settings["dropout"],
            "progressbar": False,
        }

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """In + n, where n = in^2 * sparse_rate, rounded down, is from 1 (0 at a rate of 0) to in^2 - in."""
        width, rate = module.in_features, float(insertion.settings["sparse_rate"])
        entries = min(int(width * width * rate), width * width - width)
        return width + (max(1, entries) if rate > 0 and width > 1 else entries)

    def started(self, peft_model: Any, calibration: Any) -> None:
        """Move the frozen matrices, which peft makes in host memory, to where the model is."""
        device = next(part for part in peft_model.parameters() if part.requires_grad).device
        for module in peft_model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device.type == "cpu":
                    module._buffers[name] = buffer.to(device)


class Adamss(OfLinears):
    """Rows of the weight in clusters, and in each a rank-one update within the first singular vectors.

    `subspace_rank` stays at peft's 1: above it the number of parameters depends on the sizes of the clusters.
    """

    config_class = "AdamssConfig"
    takes_conv1d = False

    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Of `peft.AdamssConfig`."""
        return {"r": insertion.settings["rank"], "num_subspaces": insertion.settings["num_subspaces"]}

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Num_subspaces * rank + out."""
        return int(insertion.settings["num_subspaces"]) * int(insertion.settings["rank"]) + module.out_features

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """More clusters than a module has rows, besides a rank above a side."""
        return super().misfits(insertion, layout) + _more_clusters_than_rows(insertion, layout)


class AdamssAsa(Adamss):
    """AdaMSS that stops training the less important clusters of the whole model during the first half of the steps.

    The schedule follows the trial's steps: nothing for a tenth of them (three at least), then ten cuts or so. Cut
    clusters keep what they have learnt. peft leaves `asa_target_subspaces`, or one fewer.
    """

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.AdamssConfig` with the schedule."""
        config = super().config(insertion, layout, steps)
        begin = max(3, steps // 10)
        every = max(1, (steps // 2 - begin) // 10)
        config.use_asa = True
        config.asa_target_subspaces = insertion.settings["asa_target_subspaces"]
        config.init_warmup, config.mask_interval = begin, every
        config.final_warmup = max(begin + 1, steps // 2 // every * every)
        return config

    def after_step(self, peft_model: Any, step: int) -> None:
        """Weigh the clusters by their gradients, and cut where it is time."""
        peft_model.base_model.update_and_allocate(step)

    def state(self, peft_model: Any) -> dict[str, Any]:
        """Averages of importance and of its uncertainty, by path of the module, and the clusters that were cut."""
        return {
            "averages": {
                path: {name: getattr(module, name)["default"] for name in _AVERAGES}
                for path, module in _clustered(peft_model)
            },
            "cut": [
                f"{path}.{name}"
                for path, module in _clustered(peft_model)
                for name, parameter in module.named_parameters(recurse=True)
                if "adamss_" in name and not parameter.requires_grad
            ],
        }

    def load(self, peft_model: Any, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        device = next(peft_model.parameters()).device
        for path, module in _clustered(peft_model):
            for name, values in state["averages"][path].items():
                getattr(module, name)["default"] = [None if one is None else one.to(device) for one in values]
        for name in state["cut"]:
            peft_model.get_parameter(name).requires_grad_(False)

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A target that is no fewer than all clusters, besides what AdaMSS cannot take."""
        found = super().misfits(insertion, layout)
        target = int(insertion.settings["asa_target_subspaces"])
        every = int(insertion.settings["num_subspaces"]) * len(modules_of(insertion, layout))
        if target >= every:
            said = f"{target} is no fewer than the {every} clusters of all modules"
            found.append(Problem("asa_target_subspaces", said, f"2 to {every - 1}", "Lower it."))
        return found


def _clustered(peft_model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.adamss import AdamssLayer

    return [(path, module) for path, module in peft_model.named_modules() if isinstance(module, AdamssLayer)]


def _more_clusters_than_rows(insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    clusters = int(insertion.settings["num_subspaces"])
    rows = sorted((module.out_features, str(module.role)) for module in modules_of(insertion, layout))
    if not rows or rows[0][0] >= clusters:
        return []
    height, role = rows[0]
    found = f"{clusters} is more than the outputs of {role}, which are {height}"
    return [Problem("num_subspaces", found, f"1 to {height}", f"Lower it or leave {role} out.")]


METHODS = (
    Deft(
        MethodFacts(
            name="deft",
            title="DEFT",
            paper="Kumar et al., NeurIPS 2025",
            summary="Takes a low-rank part out of each weight and trains another in its place.",
            settings={"rank": RANK, "decomposition_method": _PROJECTION, "dropout": DROPOUT},
            defaults={"rank": 8, "decomposition_method": "relu", "dropout": 0.0},
            knob="rank",
            ladder=LADDER,
            learning_rates=(1e-3, 2e-2),
        )
    ),
    Para(
        MethodFacts(
            name="para",
            title="PaRa",
            paper="peft documentation (`DeftConfig.para`)",
            summary="Trains which low-rank part is taken out of each weight, and puts nothing in.",
            settings={"rank": RANK, "decomposition_method": _PROJECTION},
            defaults={"rank": 8, "decomposition_method": "relu"},
            knob="rank",
            ladder=LADDER,
            learning_rates=(1e-3, 2e-2),
        )
    ),
    Frod(
        MethodFacts(
            name="frod",
            title="FRoD",
            paper="Full-Rank Efficient Fine-Tuning with Rotational Degrees, AAAI 2026 (doi:10.1609/aaai.v40i31.39813)",
            summary="Scales and a few rotations between two bases of each weight, of which the layers share one.",
            settings={"sparse_rate": FloatDomain(low=0.0, high=1.0), "dropout": DROPOUT},
            defaults={"sparse_rate": 0.01, "dropout": 0.0},
            knob="sparse_rate",
            ladder=(0.0, 0.001, 0.003, 0.01, 0.03, 0.1),
        )
    ),
    Adamss(
        MethodFacts(
            name="adamss",
            title="AdaMSS",
            paper=_ADAMSS,
            summary="Clusters the outputs of each weight and trains a rank-one update in the subspace of each cluster.",
            settings=_CLUSTERS,
            defaults=_USUAL,
            knob="num_subspaces",
            ladder=(1, 2, 5, 10, 20),
            learning_rates=(1e-3, 3e-2),
        )
    ),
    AdamssAsa(
        MethodFacts(
            name="adamss-asa",
            title="AdaMSS (ASA)",
            paper=_ADAMSS,
            summary="AdaMSS that goes on with the most important clusters only; counted are all that it starts with.",
            settings={**_CLUSTERS, "asa_target_subspaces": IntDomain(low=2, high=65536, log=True)},
            defaults={**_USUAL, "asa_target_subspaces": 20},
            knob="num_subspaces",
            ladder=(2, 5, 10, 20),
            learning_rates=(1e-3, 3e-2),
            alone=True,
        )
    ),
)
