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
        """Find the directions in one pass over the rows, padding left out, and let peft set them.

        peft's own search goes over the rows again and again until no direction turns; at rank 64 that takes minutes
        where this takes seconds, and on few rows it may never end.

        Raises:
            ValueError: where the rows are too few.
        """
        import torch
        from peft import initialize_lora_eva_weights
        from peft.tuners.lora import LoraLayer

        rank, mask = peft_model.peft_config["default"].r, None
        fits = {name: _Directions(rank) for name, module in peft_model.named_modules() if isinstance(module, LoraLayer)}

        def hook(name: str) -> Any:
            return lambda module, arguments: fits[name].add(arguments[0][mask].float())

        handles = [peft_model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in fits]
        peft_model.eval()
        with torch.no_grad():
            for batch in _with_mask(calibration):
                mask = batch["attention_mask"].bool()
                with calibration.autocast():
                    peft_model(**_without_labels(batch))
            for handle in handles:
                handle.remove()
            found = {name: fit.directions() for name, fit in fits.items()}
        initialize_lora_eva_weights(peft_model, eva_state_dict=found)


class _Directions:
    """The main directions of rows that come batch by batch: peft's incremental decomposition, once over the rows."""

    def __init__(self, rank: int) -> None:
        from peft.utils.incremental_pca import IncrementalPCA

        self._fit = IncrementalPCA(n_components=rank, lowrank=True, lowrank_seed=42)
        self._rank = rank
        self._waiting: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        """Take `[tokens, in]`; fewer tokens than directions wait for the next."""
        import torch

        self._waiting.append(rows)
        if sum(len(part) for part in self._waiting) >= self._rank:
            self._fit.partial_fit(torch.cat(self._waiting))
            self._waiting = []

    def directions(self) -> torch.Tensor:
        """`[rank, in]`, orthonormal."""
        if not hasattr(self._fit, "components_"):
            raise ValueError(f"EVA of rank {self._rank} needs training rows with at least as many tokens")
        found: torch.Tensor = self._fit.components_
        return found


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

    def prepare(
        self, model: Any, config: Any, insertion: Insertion, layout: ModelLayout, calibration: Calibration
    ) -> None:
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

    def prepare(
        self, model: Any, config: Any, insertion: Insertion, layout: ModelLayout, calibration: Calibration
    ) -> None:
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
            scales=True,
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
