"""The evaluator trains as a plain torch and peft loop does: the same losses, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.data.batches import plan
from autopeft.evaluate.pipeline import TorchEvaluator
from tests.unit.evaluate_models import LORAS
from tests.unit.evaluate_trials import STEPS, opened, run, spec_of, task_of


def plain_losses(
    evaluator: TorchEvaluator, task: EvaluationTask, spec: SearchSpec, config: peft.LoraConfig
) -> list[float]:
    """The reference: a plain torch and peft loop on a fresh model, no dropout where nothing is trained."""
    torch.manual_seed(spec.seed)
    model = AutoModelForSequenceClassification.from_pretrained(spec.model.source, num_labels=2)
    model.config.pad_token_id, model.config.use_cache = 0, False
    torch.manual_seed(task.seed)
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=task.candidate.learning_rate,
        weight_decay=spec.training.weight_decay,
    )
    steps, accumulation = STEPS, spec.training.gradient_accumulation
    warm = math.ceil(spec.training.warmup * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / max(1, warm) if step < warm else (steps - step) / (steps - warm)
    )
    model.train()
    for name, module in model.base_model.model.named_modules():
        trained = any(f".{layer}." in f".{name}." for layer in task.candidate.insertions[0].layers)
        if name.startswith(("bert", "model", "transformer")) and not trained:
            module.training = False
    losses, batches = [], plan(evaluator._bench.train, steps * accumulation, task.seed)
    for _ in range(20):
        total = 0.0
        for _ in range(accumulation):
            batch = next(batches)
            loss = model(**batch.inputs, labels=batch.labels).loss / accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.training.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize(
    ("kind", "variant", "accumulation"),
    [*(("bert", variant, 1) for variant in LORAS), ("llama", "lora", 1), ("llama", "dora", 2), ("gpt2", "pissa", 1)],
)
def test_the_first_20_losses_are_those_of_a_plain_loop(
    tmp_path: Path, kind: str, variant: str, accumulation: int
) -> None:
    spec = spec_of(tmp_path, kind, training={"gradient_accumulation": accumulation})
    evaluator = opened(spec)
    task = task_of(evaluator, tmp_path, variant=variant, layers=(1, 2))
    insertion, layout = task.candidate.insertions[0], evaluator._bench.layout
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=list(layout.paths(insertion.layers, insertion.modules)),
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
        init_lora_weights="pissa" if variant == "pissa" else True,
    )
    outcome, _ = run(evaluator, task)
    assert outcome.measurements is not None
    assert list(outcome.measurements.first_losses) == plain_losses(evaluator, task, spec, config)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "opt"])
def test_dropout_acts_only_in_layers_that_are_trained_and_before_the_head(tmp_path: Path, kind: str) -> None:
    evaluator = opened(spec_of(tmp_path, kind))
    task, layout = task_of(evaluator, tmp_path, layers=(2,)), evaluator._bench.layout
    seen: dict[str, bool] = {}

    def look(model: Any) -> None:
        seen.update({name: module.training for name, module in model.get_base_model().named_modules()})

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: look(module) if isinstance(module, peft.PeftModel) and module.training else None
    )
    try:
        outcome, _ = run(evaluator, task)
    finally:
        handle.remove()
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    active = {name for name, training in seen.items() if training}
    block, body = layout.layers[2].path, layout.layers[2].path.split(".")[0]
    assert {name for name in active if name.startswith(f"{body}.")} == {
        name for name in seen if name == block or name.startswith(f"{block}.")
    }
    assert layout.head_paths[0] in active
    assert ("dropout" in active) == (kind == "bert")
