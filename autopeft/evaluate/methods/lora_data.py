"""LoRA that starts from what training rows say: EVA from activations, CorDA from covariances, LoRA-GA from gradients.

EVA: Paischer et al. 2024, section 3.2, ranks not redistributed (rho = 1); CorDA: Yang et al., NeurIPS 2024, eq. 2 to 5,
instruction-previewed; LoRA-GA: Wang et al., NeurIPS 2024, eq. 11 and 12.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.methods.lora import DEFAULTS, Lora, facts
from autopeft.evaluate.methods.method import Calibration, modules_of

if TYPE_CHECKING:
    import torch

EVA_PASSES = 500
"""Forward passes after which directions that still turn are given up; some 10 are usual."""


class Eva(Lora):
    """A starts as the main directions of the module's inputs, B at zero."""

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """`rho = 1` leaves every module the rank that was asked for, so that the count stays a closed form."""
        from peft import EvaConfig

        config = super().config(insertion, layout, steps)
        config.init_lora_weights = "eva"
        config.eva_config = EvaConfig(rho=1.0, use_label_mask=False)
        return config

    def started(self, peft_model: Any, calibration: Calibration) -> None:
        """Let peft find the directions; padding does not count.

        Raises:
            ValueError: where the rows are too few, or the directions do not settle.
        """
        from peft import initialize_lora_eva_weights

        config = peft_model.peft_config["default"]
        # peft skips a batch with fewer tokens than directions, and waits for ever where all are so.
        batches = [dict(one) for one in _with_mask(calibration) if int(one["attention_mask"].sum()) >= config.r]
        if not batches:
            raise ValueError(f"EVA of rank {config.r} needs a batch of training rows with at least as many tokens")
        passes = 0

        def forward(model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
            nonlocal passes
            passes += 1
            if passes > EVA_PASSES:
                raise ValueError(f"the main directions of the inputs still turn after {EVA_PASSES} batches")
            with calibration.autocast():
                model(**_without_labels(inputs))

        initialize_lora_eva_weights(peft_model, batches, forward_fn=forward, show_progress_bar=False)


class Corda(Lora):
    """Starts from the singular vectors of the weight times the covariance of its inputs, and freezes the rest."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """As LoRA, and where the package is missing that peft's CorDA imports and does not ask for."""
        found = super().misfits(insertion, layout)
        if find_spec("attr") is None:
            found.append(
                Problem("method", "CorDA needs the package attrs, which is not installed", "", "pip install attrs")
            )
        return found

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """Instruction-previewed: the largest singular values are trained."""
        from peft.tuners.lora.config import CordaConfig

        config = super().config(insertion, layout, steps)
        config.init_lora_weights = "corda"
        config.corda_config = CordaConfig(corda_method="ipm")
        return config

    def prepare(self, model: Any, config: Any, calibration: Calibration) -> None:
        """Covariances of the inputs, row by row because peft's hooks take no batches, padding cut off.

        Raises:
            ValueError: where there are no rows.
        """
        import torch
        from peft.tuners.lora.corda import preprocess_corda

        _demand(calibration, "CorDA")

        def run() -> None:
            with torch.no_grad(), calibration.autocast():
                for batch in _with_mask(calibration):
                    for row in _rows(batch):
                        model(**row)

        preprocess_corda(model, config, run_model=run)


class LoraGa(Lora):
    """Starts so that the first step moves the weight as a step of full fine-tuning would."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank above half a module's smaller side: A takes the first singular vectors, B the next as many."""
        rank = int(insertion.settings["rank"])
        for module in modules_of(insertion, layout):
            most = min(module.in_features, module.out_features) // 2
            if rank > most:
                found = f"{rank} is larger than half the smaller side of {module.role}, which is {most}"
                return [Problem("rank", found, f"1 to {most}", f"Lower the rank or leave {module.role} out.")]
        return []

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """peft's defaults: direction ArB2r, scale stable."""
        from peft import LoraGAConfig

        config = super().config(insertion, layout, steps)
        config.init_lora_weights = "lora_ga"
        config.lora_ga_config = LoraGAConfig()
        return config

    def prepare(self, model: Any, config: Any, calibration: Calibration) -> None:
        """The mean gradient of the chosen weights over the rows, without dropout.

        Raises:
            ValueError: where there are no rows.
        """
        from peft.tuners.lora.loraga import preprocess_loraga

        _demand(calibration, "LoRA-GA")

        def run() -> None:
            model.eval()
            for batch in calibration.batches:
                with calibration.autocast():
                    loss = model(**batch).loss
                loss.backward()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the hooks that count passes need no gradient of the inputs
            preprocess_loraga(model, config, run)


def _demand(calibration: Calibration, title: str) -> None:
    if not calibration.batches:
        raise ValueError(f"{title} needs training rows to start from, and there are none")


def _with_mask(calibration: Calibration) -> Iterator[Mapping[str, torch.Tensor]]:
    """The batches, each with an attention mask."""
    import torch

    for batch in calibration.batches:
        yield batch if "attention_mask" in batch else {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def _without_labels(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _rows(batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Each row alone, `[1, tokens]`, on whichever side its padding was."""
    mask = batch["attention_mask"].bool()
    for index, real in enumerate(mask):
        yield {name: tensor[index : index + 1, real] for name, tensor in _without_labels(batch).items()}


METHODS = (
    Eva(
        facts(
            "eva",
            "EVA",
            "Paischer et al. 2024 (arXiv:2410.07170)",
            "LoRA whose A starts from the main directions of the inputs that training rows give each module.",
            alone=True,
        )
    ),
    Corda(
        facts(
            "corda",
            "CorDA",
            "Yang et al., NeurIPS 2024 (arXiv:2406.05223)",
            "LoRA that starts from the part of the weight that training rows use most, and freezes the rest.",
            defaults={**DEFAULTS, "alpha_ratio": 1.0},
            quantised=False,
            alone=True,
        ),
        changes_base=True,
    ),
    LoraGa(
        facts(
            "lora-ga",
            "LoRA-GA",
            "Wang et al., NeurIPS 2024 (arXiv:2407.05000)",
            "LoRA that starts along the gradient of full fine-tuning on training rows.",
            quantised=False,
            alone=True,
        ),
        changes_base=True,
    ),
)
