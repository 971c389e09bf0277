"""Writing a trained adapter so that others load it.

One method of peft becomes a folder of peft's, which `PeftModel.from_pretrained` loads. Mixes and our own methods become
`adapter_model.safetensors`, with every tensor that is new or trained, and `autopeft_adapter.json`, which says how to
make the places for them; `autopeft.load_adapter` loads both kinds. So does what was trained on a pruned base: the
record then also says what of each layer, module and rank stays.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from autopeft.evaluate.checkpoint import to_disk
from autopeft.evaluate.composition import Composed
from autopeft.evaluate.insertion import Inserted
from autopeft.evaluate.loading import RECORD, WEIGHTS, load_adapter
from autopeft.evaluate.pruning.record import folded_tensors, to_record

__all__ = ["PREDICTIONS", "RECORD", "WEIGHTS", "load_adapter", "save_adapter"]

PREDICTIONS = "test_predictions.json"
_FORMAT = 1


def save_adapter(inserted: Inserted, folder: Path) -> int:
    """Write the adapter, head included; returns the weights file's bytes.

    The folder appears whole or not at all, even where the machine stops at once. An adapter of peft's whose
    initialisation changed the base weights (PiSSA) is written as the plain LoRA of twice the rank that does the same on
    the untouched base: A' = [A; A0], B' = [B, -B0], because W_res + s B A = W + s (B A - B0 A0). Up to rounding: where
    the base is in half precision, W_res is not what the equation says (see `TrialRun`).
    """
    with _whole(folder) as unfinished:
        if inserted.composed is not None:
            _write_composed(inserted, inserted.composed, unfinished)
        else:
            _write_peft(inserted, unfinished)
    return (folder / WEIGHTS).stat().st_size


def _write_composed(inserted: Inserted, composed: Composed, folder: Path) -> None:
    model = inserted.model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = {name: _copied(tensors[name]) for name in composed.names}
    if inserted.pruned is not None:
        saved |= folded_tensors(inserted.pruned)
    save_file(saved, folder / WEIGHTS, metadata={"format": "pt"})
    record = {
        "format": _FORMAT,
        "base_model_name_or_path": model.name_or_path,
        "task": inserted.layout.task.value,
        "head_paths": inserted.layout.head_paths,
        "insertions": [one.model_dump(mode="json") for one in inserted.insertions],
        "peft_configs": [config and _as_json(config) for config in composed.configs],
    }
    if any(composed.companions):
        record["forms"] = [companion and companion.form() for companion in composed.companions]
    if inserted.pruned is not None:
        record["pruning"] = to_record(inserted.pruned)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _write_peft(inserted: Inserted, folder: Path) -> None:
    found = get_peft_model_state_dict(inserted.model, save_embedding_layers=False)
    state = {name: _copied(tensor) for name, tensor in found.items()}
    config = copy.deepcopy(inserted.model.peft_config["default"])
    config.inference_mode = True
    if inserted.initial:
        _subtract_initial(state, inserted.initial)
        config.init_lora_weights = True
        config.corda_config = config.lora_ga_config = None
        config.r *= 2
        config.lora_alpha *= 2
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _as_json(config: Any) -> Any:
    """What peft itself would write, because it knows which fields belong there and how."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `folder` when it is full and on the disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished, former = (folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}" for _ in range(2))
    try:
        unfinished.mkdir()
        yield unfinished
        for path in (*unfinished.iterdir(), unfinished):
            to_disk(path)
        if folder.exists():
            # Moved away, because deleting a large checkpoint takes time, and a kill meanwhile would leave neither.
            os.replace(folder, former)
        os.replace(unfinished, folder)
        to_disk(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _subtract_initial(state: dict[str, torch.Tensor], initial: dict[str, torch.Tensor]) -> None:
    for name, first in initial.items():
        key = name.replace(".default.", ".")
        if ".lora_A." in name:
            state[key] = torch.cat([state[key], first.to(state[key].dtype)], dim=0).contiguous()
        else:
            state[key] = torch.cat([state[key], -first.to(state[key].dtype)], dim=1).contiguous()
