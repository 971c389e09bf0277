"""Writing a trained adapter so that plain peft loads it, and loading one."""

from __future__ import annotations

import copy
import os
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from autopeft.evaluate.insertion import Inserted

WEIGHTS = "adapter_model.safetensors"
PREDICTIONS = "test_predictions.json"


def save_adapter(inserted: Inserted, folder: Path) -> int:
    """Write `adapter_model.safetensors` and `adapter_config.json`, head included; returns the weights file's bytes.

    The folder appears whole or not at all, even where the machine stops at once. An adapter whose initialisation
    changed the base weights (PiSSA) is written as the plain LoRA of twice the rank that does the same on the untouched
    base: A' = [A; A0], B' = [B, -B0], because W_res + s B A = W + s (B A - B0 A0). Up to rounding: where the base is in
    half precision, W_res is not what the equation says (see `TrialRun`).
    """
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in get_peft_model_state_dict(inserted.peft_model, save_embedding_layers=False).items()
    }
    config = copy.deepcopy(inserted.peft_model.peft_config["default"])
    config.inference_mode = True
    if inserted.initial:
        _subtract_initial(state, inserted.initial)
        config.init_lora_weights = True
        config.r *= 2
        config.lora_alpha *= 2
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    try:
        unfinished.mkdir()
        save_file(state, unfinished / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(unfinished))
        for path in (*unfinished.iterdir(), unfinished):
            _to_disk(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unfinished, folder)
        _to_disk(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return (folder / WEIGHTS).stat().st_size


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not only in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_adapter(model: Any, folder: Path) -> PeftModel:
    """The adapter on `model`, exactly as anyone with peft alone loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, str(folder))


def _subtract_initial(state: dict[str, torch.Tensor], initial: dict[str, torch.Tensor]) -> None:
    for name, first in initial.items():
        key = name.replace(".default.", ".")
        if ".lora_A." in name:
            state[key] = torch.cat([state[key], first.to(state[key].dtype)], dim=0).contiguous()
        else:
            state[key] = torch.cat([state[key], -first.to(state[key].dtype)], dim=1).contiguous()
