"""LoRA and its relatives that peft's LoRA layer knows: rsLoRA, DoRA and PiSSA initialisation.

LoRA: Hu et al., ICLR 2022, eq. 3; rsLoRA: Kalajdzievski 2023, scale alpha / sqrt(rank); DoRA: Liu et al., ICML 2024,
eq. 5; PiSSA: Meng et al., NeurIPS 2024, eq. 2 to 4. peft is imported late, because binding a space needs the rules
only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.domain.results import TaskInfo
from autopeft.domain.space import ChoiceDomain, Domain, FloatDomain, IntDomain

VARIANTS = ("lora", "rslora", "dora", "pissa")
_HEADS_OF_PEFT = ("classifier", "score")
"""Modules that peft trains and saves for sequence classification without being told."""
_NOTHING = "dummy-target-modules"
"""The `target_modules` with which peft inserts nothing and still trains and saves the head."""


class Lora:
    """A product of two thin matrices beside each chosen linear module, `W + scale * B A`."""

    name = "lora"
    settings: Mapping[str, Domain] = {
        "rank": IntDomain(low=1, high=4096, log=True),
        "alpha_ratio": FloatDomain(low=1e-3, high=1e3, log=True),
        "dropout": FloatDomain(low=0.0, high=0.9),
        "variant": ChoiceDomain(values=VARIANTS),
    }

    def problems(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Layers or roles that the model lacks, settings out of range, a rank above a module's smaller side."""
        found = _missing_places(insertion, layout) + self._bad_settings(insertion.settings)
        rank = insertion.settings.get("rank")
        if isinstance(rank, int) and not isinstance(rank, bool):
            sides = {
                (role, min(module.in_features, module.out_features))
                for index in insertion.layers
                if 0 <= index < len(layout.layers)
                for role in insertion.modules
                if (module := layout.layers[index].module(role)) is not None
            }
            low = sorted((side, role) for role, side in sides if side < rank)
            if low:
                side, role = low[0]
                found.append(
                    Problem(
                        "rank",
                        f"{rank} is larger than the smaller side of {role}, which is {side}",
                        f"1 to {side}",
                        f"Lower the rank or leave {role} out.",
                    )
                )
        return found

    def peft_config(self, insertion: Insertion, layout: ModelLayout, task: TaskInfo) -> Any:
        """A `peft.LoraConfig` with the full path of every target, so that nothing matches by accident.

        Raises:
            UserError: where `problems` finds some.
        """
        from peft import LoraConfig

        problems = self.problems(insertion, layout)
        if problems:
            raise UserError(*problems)
        rank, variant = insertion.settings["rank"], insertion.settings["variant"]
        alpha = float(insertion.settings["alpha_ratio"]) * int(rank)
        return LoraConfig(
            **head_arguments(layout),
            target_modules=list(layout.paths(insertion.layers, insertion.modules)) or _NOTHING,
            r=int(rank),
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            lora_dropout=float(insertion.settings["dropout"]),
            use_rslora=variant == "rslora",
            use_dora=variant == "dora",
            init_lora_weights="pissa" if variant == "pissa" else True,
        )

    def _bad_settings(self, settings: Mapping[str, Setting]) -> list[Problem]:
        found = []
        for name, domain in self.settings.items():
            value = settings.get(name)
            if isinstance(domain, ChoiceDomain):
                if value not in domain.values:
                    allowed = ", ".join(map(str, domain.values))
                    found.append(Problem(name, _said(value), allowed, f"Choose a {name}."))
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = not isinstance(domain, IntDomain) or isinstance(value, int)
            if not number or not whole or not domain.low <= float(value or 0) <= domain.high:
                found.append(Problem(name, _said(value), f"{domain.low:g} to {domain.high:g}", f"Change {name}."))
        found += [
            Problem(name, "the method lora has no such setting", ", ".join(self.settings), "Remove it.")
            for name in settings
            if name not in self.settings
        ]
        return found


def head_only_config(layout: ModelLayout) -> Any:
    """A `peft.LoraConfig` that inserts nothing and trains the head."""
    from peft import LoraConfig

    return LoraConfig(**head_arguments(layout), target_modules=_NOTHING)


def head_arguments(layout: ModelLayout) -> dict[str, Any]:
    """The arguments of every configuration: the task, and the head's modules that peft would not train by itself."""
    extra = [path for path in layout.head_paths if path not in _HEADS_OF_PEFT]
    return {"task_type": "SEQ_CLS", "modules_to_save": extra or None}


def _missing_places(insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    found = []
    outside = [index for index in insertion.layers if not 0 <= index < len(layout.layers)]
    if outside:
        found.append(
            Problem(
                "layers",
                f"layer {_listed(outside)} is not in the model, which has {len(layout.layers)}",
                f"0 to {len(layout.layers) - 1}",
                "Leave it out.",
            )
        )
    for role in insertion.modules:
        lacking = [
            index
            for index in insertion.layers
            if 0 <= index < len(layout.layers) and layout.layers[index].module(role) is None
        ]
        if lacking:
            found.append(
                Problem(
                    "modules",
                    f"layer {_listed(lacking)} has no {role}",
                    ", ".join(str(known) for known in layout.roles()),
                    "Choose roles that every layer has.",
                )
            )
    if insertion.layers and not insertion.modules:
        found.append(Problem("modules", "no module is chosen", ", ".join(map(str, layout.roles())), "Choose some."))
    return found


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _said(value: Setting | None) -> str:
    return "is missing" if value is None else f"{value!r} is not allowed"
