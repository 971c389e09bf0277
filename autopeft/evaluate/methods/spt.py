"""SPT: the parameters of a budget go to the weights to which the loss is most sensitive (He et al., ICCV 2023).

One pass over some training rows before the training sums g, the squared gradient of every frozen weight: what a step of
gradient descent on that weight alone would take off the loss, to first order. `spt-lora` is the paper's rule: which
matrices get a LoRA, and which of the other weights are trained one by one. `spt-ranks` is ours: LoRA whose ranks are in
proportion to the sum of g over each matrix. They are two methods because the first is saved in a form of ours, and the
second as an ordinary LoRA of peft with a `rank_pattern`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import FloatDomain
from autopeft.evaluate.methods.checks import narrower_than
from autopeft.evaluate.methods.lora import DEFAULTS, SETTINGS, Lora
from autopeft.evaluate.methods.method import Attached, Calibration, Given, OwnMethod, modules_of

_BUDGET = FloatDomain(low=1e-4, high=1.0, log=True)
_LADDER = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
_PAPER = "He et al., ICCV 2023 (arXiv:2303.08566)"


def budget_of(insertion: Insertion, layout: ModelLayout) -> int:
    """`budget` times the sum over the modules of rank * (in + out), what LoRA would train, rounded down."""
    rank = int(insertion.settings["rank"])
    whole = sum(rank * _sides(module) for module in modules_of(insertion, layout))
    # A hair more, so that 0.1 of 30 is 3 in floating point too.
    return int(float(insertion.settings["budget"]) * whole + 1e-9)


def _sides(module: ModuleLayout) -> int:
    return module.in_features + module.out_features


class SptLora(OwnMethod):
    """LoRA in the matrices with many of the tau most sensitive weights; of the others these weights alone.

    A matrix gets LoRA where at least (parameters of its LoRA) / `ratio` of its weights are among the tau most sensitive
    of all chosen modules; tau is the largest with which no more is trained than the budget. The paper's alpha, `ratio`,
    is 10, its rank 8, and its pass sees 16 batches of 32. Its rule for vectors is left out, as an insertion names
    linear modules. Single entries are trained as a sparse update that starts at zero.
    """

    exact_count = False

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank above a module's smaller side; a budget of less than one weight."""
        found = narrower_than("rank", insertion, layout)
        if not found and insertion.layers and budget_of(insertion, layout) < 1:
            found = [_too_little("not one weight", 1, insertion, layout)]
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """The most: budget * sum over the modules of rank * (in + out), rounded down.

        What is trained is the sum of rank * (in + out) over the modules with LoRA and of the number of single weights
        elsewhere; one more weight would exceed the budget, because its matrix would then get LoRA, or by itself.
        """
        return budget_of(insertion, layout)

    def attach(self, model: Any, layout: ModelLayout, insertion: Insertion, name: str, given: Given) -> Attached:
        """An update per module with anything to train, below the block as `<name>.<role>`, acting by a hook.

        Raises:
            ValueError: where there are no training rows to decide by, or nothing is sensitive.
        """
        import torch
        from torch import nn

        from autopeft.evaluate.methods.beside import folding
        from autopeft.evaluate.methods.spt_modules import Allocated, Entries, LowRank

        form, entries = _form(model, layout, insertion, given)
        modules: dict[str, LowRank | Entries] = {}
        blocks = []
        for index in insertion.layers:
            layer = layout.layers[index]
            beside = nn.ModuleDict()
            for role in insertion.modules:
                found = layer.module(role)
                assert found is not None  # the rules refuse a model without
                linear, sizes = model.get_submodule(found.path), (found.in_features, found.out_features)
                made: LowRank | Entries
                if found.path in form["low_rank"]:
                    rank, scale = int(insertion.settings["rank"]), float(insertion.settings["alpha_ratio"])
                    made = LowRank(linear, *sizes, transposed=found.transposed, rank=rank, scale=scale)
                elif found.path in form["entries"]:
                    places = entries.get(found.path, torch.zeros(form["entries"][found.path], dtype=torch.long))
                    made = Entries(linear, *sizes, transposed=found.transposed, entries=places)
                else:
                    continue
                beside[role.replace(".", "_")] = modules[found.path] = made
            if len(beside):
                blocks.append(model.get_submodule(layer.path))
                blocks[-1].add_module(name, beside)
        parameters = {
            f"{path}.{part}": parameter
            for path, module in modules.items()
            for part, parameter in module.named_parameters()
        }
        return Attached(tuple(modules), parameters, Allocated(form, folding(model, modules, blocks, name)))


def _form(
    model: Any, layout: ModelLayout, insertion: Insertion, given: Given
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Where what goes: of a saved adapter as it says, else decided now, with the entries by path."""
    if given.form is not None:
        return given.form, {}
    import torch

    from autopeft.evaluate.methods.allocation import most_sensitive, needed, targets
    from autopeft.evaluate.methods.sensitivity import sensitivity

    modules = modules_of(insertion, layout)
    rank, ratio = int(insertion.settings["rank"]), float(insertion.settings["ratio"])
    structured = [rank * _sides(module) for module in modules]
    maps = sensitivity(model, {module.path: module.transposed for module in modules}, given.calibration)
    found = [
        most_sensitive(maps.pop(module.path).numpy(), needed(one, ratio))
        for module, one in zip(modules, structured, strict=True)
    ]
    decided = targets(found, structured, ratio, budget_of(insertion, layout))
    if not decided.low_rank and not decided.entries:
        raise ValueError("no chosen weight has a gradient on the training rows")
    entries = {modules[index].path: torch.from_numpy(places) for index, places in sorted(decided.entries.items())}
    form = {
        "low_rank": [modules[index].path for index in sorted(decided.low_rank)],
        "entries": {path: len(places) for path, places in entries.items()},
    }
    return form, entries


class SptRanks(Lora):
    """LoRA whose ranks are in proportion to the sensitivity of the modules, under one budget.

    The sensitivity of a module is the sum of g over its weights. No rank is above the module's smaller side; a module
    with less than half a rank gets none. The scale is alpha / rank = `alpha_ratio` in all of them.
    """

    exact_count = False

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank above a module's smaller side; a budget of less than one rank of any module."""
        found = super().misfits(insertion, layout)
        least = max((_sides(module) for module in modules_of(insertion, layout)), default=0)
        if not found and budget_of(insertion, layout) < least:
            found = [_too_little("not rank 1 of every module", least, insertion, layout)]
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """The most: budget * sum over the modules of rank * (in + out), rounded down.

        What is trained is the sum of r * (in + out) with the ranks r that the modules got; one rank more of a module
        that has not all it can have would exceed the budget.
        """
        return budget_of(insertion, layout)

    def prepare(
        self, model: Any, config: Any, insertion: Insertion, layout: ModelLayout, calibration: Calibration
    ) -> None:
        """Find the sensitivities and write ranks, scales and targets into the configuration.

        Raises:
            ValueError: where there are no training rows to decide by, or nothing is sensitive.
        """
        from autopeft.evaluate.methods.allocation import ranks
        from autopeft.evaluate.methods.sensitivity import total_sensitivity

        modules, alpha_ratio = modules_of(insertion, layout), float(insertion.settings["alpha_ratio"])
        found = total_sensitivity(model, {module.path: module.transposed for module in modules}, calibration)
        most = [min(module.in_features, module.out_features) for module in modules]
        costs = [_sides(module) for module in modules]
        given = ranks([found[one.path] for one in modules], costs, most, budget_of(insertion, layout))
        pattern = {module.path: rank for module, rank in zip(modules, given, strict=True) if rank}
        if not pattern:
            raise ValueError("no chosen weight has a gradient on the training rows")
        config.target_modules = set(pattern)
        config.rank_pattern = pattern
        config.alpha_pattern = {path: alpha_ratio * rank for path, rank in pattern.items()}


def _too_little(what: str, least: int, insertion: Insertion, layout: ModelLayout) -> Problem:
    rank = int(insertion.settings["rank"])
    whole = sum(rank * _sides(module) for module in modules_of(insertion, layout))
    share = insertion.settings["budget"]
    return Problem("budget", f"{share} of {whole} parameters are {what}", f"{least / whole:.3g} to 1", "Raise it.")


_SHARED: dict[str, Any] = {"knob": "budget", "ladder": _LADDER, "alone": True}

METHODS = (
    SptLora(
        MethodFacts(
            name="spt-lora",
            title="SPT-LoRA",
            paper=_PAPER,
            summary="Within a budget, LoRA in the matrices to which the loss is most sensitive, and single weights "
            "of the others.",
            settings={
                "rank": SETTINGS["rank"],
                "budget": _BUDGET,
                "ratio": FloatDomain(low=1.0, high=1e4, log=True),
                "alpha_ratio": SETTINGS["alpha_ratio"],
            },
            defaults={"rank": 8, "budget": 0.5, "ratio": 10.0, "alpha_ratio": 2.0},
            library="autopeft",
            **_SHARED,
        )
    ),
    SptRanks(
        MethodFacts(
            name="spt-ranks",
            title="Ranks by SPT's sensitivity",
            paper=_PAPER,
            summary="Within a budget, LoRA with ranks in proportion to the sensitivity of the loss to each matrix.",
            settings={**SETTINGS, "budget": _BUDGET},
            defaults={**DEFAULTS, "budget": 0.5},
            **_SHARED,
        )
    ),
)
