"""A new process that has peft alone gets the same predictions from every saved low-rank or shared-vector adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from autopeft.evaluate.artefact import save_adapter
from autopeft.evaluate.methods import METHODS
from tests.contract.method_runs import inputs_of, inserted_in, logits_of, train
from tests.contract.test_methods_low_rank_fit import MINE, classifier, insertion_of

SCRIPT = """
import sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

folder = Path(sys.argv[1])
found = {}
for adapter in sorted((folder / "adapters").iterdir()):
    torch.manual_seed(99)  # nothing may depend on what the adapter was made with
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        found[adapter.name] = model(**load_file(folder / "inputs.safetensors")).logits.contiguous()
save_file(found, folder / "logits.safetensors")
"""


@pytest.mark.slow
def test_a_new_process_with_peft_alone_predicts_the_same(tmp_path: Path) -> None:
    base, live = classifier("bert"), {}
    for name in MINE:
        roles = METHODS[name].default_modules(base.layout)
        with inserted_in(base, insertion_of(name, base, roles)) as inserted:
            train(base, inserted, 4, 3e-2)
            live[name] = logits_of(inserted.model, base.kind)
            save_adapter(inserted, tmp_path / "adapters" / name)
    base.model.save_pretrained(tmp_path / "base")
    save_file(inputs_of(base.kind), tmp_path / "inputs.safetensors")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path, timeout=240)
    found = load_file(tmp_path / "logits.safetensors")
    assert found.keys() == set(MINE)
    differences = {name: (found[name] - live[name]).abs().max().item() for name in MINE}
    wrong = {name: one for name, one in differences.items() if one > 1e-4 * live[name].abs().max().item()}
    assert not wrong
    untrained = logits_of(base.model, base.kind)
    assert all((one - untrained).abs().max() > 1e-3 for one in live.values()), "nothing was there to be lost"
