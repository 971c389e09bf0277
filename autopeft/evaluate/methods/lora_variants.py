"""LoRA with more than two matrices or fewer weights: KaSA, BD-LoRA, VeLoRA, MonteCLoRA.

KaSA: Wang et al., ICLR 2025, eq. 4 to 12; BD-LoRA: Wang et al. 2025, section 3; VeLoRA: Miles et al., NeurIPS 2024;
MonteCLoRA: Seth et al. 2024, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, Role
from autopeft.domain.space import ChoiceDomain, IntDomain
from autopeft.evaluate.methods.checks import narrower_than
from autopeft.evaluate.methods.fit import linear_only
from autopeft.evaluate.methods.lora import DEFAULTS, SETTINGS, Lora, facts
from autopeft.evaluate.methods.method import Calibration, modules_of

UNREGISTERED_VARIANTS: dict[str, str] = {
    "alora_invocation_tokens": "aLoRA acts only behind a given sequence of tokens in the prompt, which the rows of a "
    "search do not hold; it is for serving many adapters on one cache, not for quality or memory of training.",
    "arrow_config": "Arrow routes between LoRAs that were trained before; a candidate starts from a base model alone.",
    "layer_replication": "It makes another, deeper base model, with which points on one front would not compare.",
    "lora_bias": "A bias beside B; a mix of lora and bitfit trains the biases themselves.",
    "loftq": "LoftQ writes the error of a simulated quantisation into the adapter, and needs bitsandbytes and the "
    "weights in full precision at once; a base that is loaded in 4 bits has them no more.",
    "use_qalora": "QA-LoRA is implemented for GPTQ checkpoints only.",
    "gaussian": "Another random start of A with the same distribution of updates up to a factor.",
    "orthogonal": "A random start without a paper that needs even ranks.",
    "pissa_niter": "A faster, inexact decomposition of `pissa`; at the widths of a search the exact one takes seconds.",
}
"""What `peft.LoraConfig` offers beside the registered methods, and why no method is made of it."""

COLUMNS = (Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.FFN_IN, Role.FFN_GATE)
"""Modules that tensor parallelism splits by their outputs, where BD-LoRA cuts B into blocks; elsewhere A."""


class Kasa(Lora):
    """Drops the smallest singular values of the weight and learns an update in the form of a decomposition."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """A rank that leaves nothing of a weight; weights that are held transposed."""
        found = narrower_than("rank", insertion, layout)
        rank = int(insertion.settings["rank"])
        for module in modules_of(insertion, layout):
            if not found and rank == min(module.in_features, module.out_features):
                reason = f"{rank} leaves no singular value of {module.role}, which has {rank}"
                found = [Problem("rank", reason, f"1 to {rank - 1}", f"Lower the rank or leave {module.role} out.")]
        return found + linear_only("KaSA", insertion, layout)

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * (in + out + 1): a diagonal stands between A and B."""
        rank = int(insertion.settings["rank"])
        return sum(rank * (module.in_features + module.out_features + 1) for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """peft's defaults, which are those of the paper's code for GLUE."""
        from peft import KasaConfig

        config = super().config(insertion, layout, steps)
        config.kasa_config = KasaConfig()
        return config

    def saved_as_difference(self, insertion: Insertion) -> bool:
        """No: peft drops the same singular values again when it loads the adapter."""
        return False

    def started(self, peft_model: Any, calibration: Calibration) -> None:
        """Add the two regularisers (eq. 9 to 12) to the loss of training, which peft leaves to its caller."""
        _add_to_loss(peft_model.base_model, peft_model.base_model._get_kasa_loss)


class BdLora(Lora):
    """LoRA of which one factor is block-diagonal, so that a served model can be split without communication."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """As LoRA, weights that are held transposed, and blocks that do not divide the rank or the side that is cut."""
        found = super().misfits(insertion, layout) + linear_only("BD-LoRA", insertion, layout)
        blocks, rank = int(insertion.settings["nblocks"]), int(insertion.settings["rank"])
        if rank % blocks:
            found.append(
                Problem("nblocks", f"{blocks} does not divide the rank {rank}", "a divisor", "Change one of them.")
            )
        for module in modules_of(insertion, layout):
            side = module.out_features if module.role in COLUMNS else module.in_features
            if side % blocks:
                reason = f"{blocks} does not divide {side}, the width of {module.role}"
                found.append(Problem("nblocks", reason, "a divisor", f"Change it or leave {module.role} out."))
                break
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * (in + out / blocks), or rank * (in / blocks + out) where A is cut."""
        blocks, rank = int(insertion.settings["nblocks"]), int(insertion.settings["rank"])
        return sum(
            rank * (module.in_features + module.out_features // blocks)
            if module.role in COLUMNS
            else rank * (module.in_features // blocks + module.out_features)
            for module in modules_of(insertion, layout)
        )

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """B is cut where tensor parallelism splits outputs, A where it splits inputs."""
        from peft import BdLoraConfig

        config = super().config(insertion, layout, steps)
        modules = modules_of(insertion, layout)
        config.use_bdlora = BdLoraConfig(
            target_modules_bd_a=[module.path for module in modules if module.role not in COLUMNS],
            target_modules_bd_b=[module.path for module in modules if module.role in COLUMNS],
            nblocks=int(insertion.settings["nblocks"]),
        )
        return config


class Velora(Lora):
    """LoRA that keeps the inputs of A compressed for the backward pass, one number per group of features."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """As LoRA, and more groups than features."""
        found = super().misfits(insertion, layout)
        groups = int(insertion.settings["num_groups"])
        narrow = [(module.in_features, module.role) for module in modules_of(insertion, layout)]
        width, role = min(narrow)
        if groups > width:
            reason = f"{groups} is larger than the {width} inputs of {role}"
            found.append(Problem("num_groups", reason, f"1 to {width}", f"Lower it or leave {role} out."))
        return found

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """The projection is the mean of the batch, as peft has it by default."""
        from peft import VeloraConfig

        config = super().config(insertion, layout, steps)
        config.velora_config = VeloraConfig(num_groups=int(insertion.settings["num_groups"]))
        return config


class MonteCLora(Lora):
    """LoRA that trains the mean of A and the law of samples around it; the mean alone predicts."""

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of rank * (in + out + 1) + samples: a deviation per direction, a weight per sample."""
        rank, samples = int(insertion.settings["rank"]), int(insertion.settings["num_samples"])
        return sum(
            rank * (module.in_features + module.out_features + 1) + samples for module in modules_of(insertion, layout)
        )

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """Samples are drawn when they are needed; peft would keep 150 sets per module, as large as A each."""
        from peft import MontecloraConfig

        config = super().config(insertion, layout, steps)
        config.monteclora_config = MontecloraConfig(num_samples=int(insertion.settings["num_samples"]), buffer_size=1)
        return config

    def started(self, peft_model: Any, calibration: Calibration) -> None:
        """Add the divergence from the prior to the loss of training, which peft leaves to its caller."""
        _add_to_loss(peft_model.base_model, peft_model.base_model._get_monteclora_loss)

    def state(self, peft_model: Any) -> dict[str, Any]:
        """What was drawn and not used yet, and the law of the last draw, by path of the sampler."""
        return {
            path: {
                "index": module.sampler.index,
                "drawn": module.sampler.buffer if module.sampler.index < len(module.sampler.buffer) else None,
                "law": {name: tensor.detach() for name, tensor in module.named_buffers(recurse=False)},
            }
            for path, module in _samplers(peft_model)
        }

    def load(self, peft_model: Any, state: Mapping[str, Any]) -> None:
        """Go on from a state; what is drawn next comes from the random state that is restored with it."""
        for path, module in _samplers(peft_model):
            module.sampler.index = state[path]["index"]
            if state[path]["drawn"] is not None:
                module.sampler.buffer = state[path]["drawn"]
            for name, values in state[path]["law"].items():
                setattr(module, name, values.to(module.std_prior.device))


def _samplers(peft_model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora.monteclora import MontecloraSampler

    return [(path, module) for path, module in peft_model.named_modules() if isinstance(module, MontecloraSampler)]


def _add_to_loss(tuner: Any, term: Any) -> None:
    """In training, the loss of peft's own module has `term()` added; the base model below it knows nothing of it."""

    def added(module: Any, arguments: Any, output: Any) -> Any:
        if module.training and getattr(output, "loss", None) is not None:
            output.loss = output.loss + term()
        return output

    tuner.register_forward_hook(added)


METHODS = (
    Kasa(
        facts(
            "kasa",
            "KaSA",
            "Wang et al., ICLR 2025 (arXiv:2412.06071)",
            "Drops the smallest singular values of each weight and learns a decomposed update, diagonal included.",
            quantised=False,
            alone=True,
        ),
        changes_base=True,
    ),
    BdLora(
        facts(
            "bd-lora",
            "BD-LoRA",
            "Wang et al. 2025 (arXiv:2510.23346)",
            "LoRA with one block-diagonal factor, so that a split model serves it without communication.",
            scales=True,
            settings={**SETTINGS, "nblocks": ChoiceDomain(values=(1, 2, 4, 8, 16), ordered=True)},
            defaults={**DEFAULTS, "nblocks": 2},
            ladder=(2, 4, 8, 16, 32, 64),
            quantised=False,
        )
    ),
    Velora(
        facts(
            "velora",
            "VeLoRA",
            "Miles et al., NeurIPS 2024 (arXiv:2405.17991)",
            "LoRA that keeps the inputs of A compressed for the backward pass.",
            scales=True,
            settings={**SETTINGS, "num_groups": IntDomain(low=1, high=4096, log=True)},
            defaults={**DEFAULTS, "num_groups": 64},
            quantised=False,
        )
    ),
    MonteCLora(
        facts(
            "monteclora",
            "MonteCLoRA",
            "Seth et al. 2024 (arXiv:2411.04358)",
            "LoRA that learns the law of random perturbations of A together with their mean.",
            scales=True,
            settings={**SETTINGS, "num_samples": IntDomain(low=1, high=64, log=True)},
            defaults={**DEFAULTS, "num_samples": 8},
            quantised=False,
            alone=True,
        )
    ),
)
