"""IncreLoRA: Zhang et al. 2023 (arXiv:2308.12043): updates in SVD form whose ranks grow where they matter."""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import FloatDomain, IntDomain
from autopeft.evaluate.methods.checks import narrower_than
from autopeft.evaluate.methods.growth import schedule_of
from autopeft.evaluate.methods.method import Attached, Given, OwnMethod, modules_of


class IncreLora(OwnMethod):
    """`W + alpha_ratio * B diag(E) A` beside each module, from rank 1 to `rank` on average.

    Every step scores each module by `S = sum |dW * grad(dW)| / sqrt(size)`, where dW is its whole update; `I <- 0.85 I
    + 0.15 S` and `U <- 0.85 U + 0.15 |S - I|` smooth it, and the modules with the largest `I * U` grow. Each module
    trains as many ranks in advance as it would grow by, with E at 1e-5 until then ("advance learning"). What joins at a
    growth begins the learning rate's schedule anew ("restart warm-up", `autopeft.evaluate.schedule`). A and B are drawn
    as AdaLoRA's and pulled towards orthonormal rows and columns by its penalty; E of the first rank is 0.

    Published for GLUE are 1000 steps before the first growth and between two, blocks of 1, 2, 3 and 4 ranks for targets
    of 2, 4, 6 and 8, and 1 to 13 modules at a time; for SST-2 5 or 6 of 72 in 24 epochs (50 520 steps in batches of
    32). Here the steps are shares of the training and the modules a share of all, by default as for SST-2. Where a
    training is so short that the target would be missed, more modules grow at a time, and by larger blocks.

    Ours are also: the scale stays the same while a module grows, so that growing changes no output, where the released
    code divides by the module's rank; the penalty is that of whole matrices, where that code takes each row alone;
    growth is over after half of the steps, and ends at the target exactly; with several backward passes per step the
    scores of the passes are summed; and the ranks in advance are let go when the target is reached.
    """

    exact_count = False
    grows = True

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank above a module's smaller side."""
        return narrower_than("rank", insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * (in + out + 1), the target, as if all modules had grown alike.

        What is trained in the end is the sum of r * (in + out + 1) with the ranks r that they got, whose mean is `rank`
        in any training of two steps or more. Where all modules have one shape, that is the same number. Until the
        target is reached, every module also trains the A and B of its spare ranks.
        """
        rank = int(insertion.settings["rank"])
        return sum(rank * (module.in_features + module.out_features + 1) for module in modules_of(insertion, layout))

    def attach(self, model: Any, layout: ModelLayout, insertion: Insertion, name: str, given: Given) -> Attached:
        """A growing update per module, below the block as `<name>.<role>`, and a forward hook on the module.

        A saved adapter gets the ranks that it says, and does not grow.
        """
        import torch
        from torch import nn

        from autopeft.evaluate.methods.beside import folding
        from autopeft.evaluate.methods.increlora_modules import Growing, Growth

        settings = insertion.settings
        seed = int(torch.randint(2**31, ()))
        modules: dict[str, Growing] = {}
        blocks = []
        for index in insertion.layers:
            layer = layout.layers[index]
            beside = nn.ModuleDict()
            for role in insertion.modules:
                found = layer.module(role)
                assert found is not None  # the rules refuse a model without
                beside[role.replace(".", "_")] = modules[found.path] = Growing(
                    model.get_submodule(found.path),
                    found.in_features,
                    found.out_features,
                    transposed=found.transposed,
                    scale=float(settings["alpha_ratio"]),
                    dropout=float(settings["dropout"]),
                    seed=(seed, len(modules)),
                )
            block = model.get_submodule(layer.path)
            block.add_module(name, beside)
            blocks.append(block)
        schedule = schedule_of(
            given.steps,
            len(modules),
            int(settings["rank"]),
            top=float(settings["top"]),
            warmup=float(settings["warmup"]),
            interval=float(settings["interval"]),
        )
        fold = folding(model, modules, blocks, name)
        growth = Growth(modules, schedule, given.steps, float(settings["orthogonality"]), fold)
        if given.form is not None:
            growth.load_form(given.form)
        parameters = {
            f"{path}.{part}": parameter
            for path, module in modules.items()
            for part, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        return Attached(tuple(modules), parameters, growth)


METHODS = (
    IncreLora(
        MethodFacts(
            name="increlora",
            title="IncreLoRA",
            paper="Zhang et al. 2023 (arXiv:2308.12043)",
            summary="Updates in the form of singular values and vectors, whose ranks grow in the modules that matter.",
            settings={
                "rank": IntDomain(low=2, high=4096, log=True),
                "top": FloatDomain(low=0.001, high=1.0, log=True),
                "warmup": FloatDomain(low=0.0, high=0.4),
                "interval": FloatDomain(low=0.0005, high=0.4, log=True),
                "orthogonality": FloatDomain(low=0.0, high=10.0),
                "alpha_ratio": FloatDomain(low=1e-3, high=1e3, log=True),
                "dropout": FloatDomain(low=0.0, high=0.9),
            },
            defaults={
                "rank": 8,
                "top": 1 / 12,
                "warmup": 0.02,
                "interval": 0.02,
                "orthogonality": 0.1,
                "alpha_ratio": 2.0,
                "dropout": 0.0,
            },
            knob="rank",
            ladder=(2, 4, 6, 8, 16, 32),
            quantised=True,
            library="autopeft",
        )
    ),
)
