"""The papers' mixes: several of our methods, and peft's beside them, in the same layers of one candidate."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout, Role
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.insertion import insert, removed_afterwards
from autopeft.evaluate.methods import METHODS
from tests.contract.method_runs import DECODERS, base_of, inputs_of, logits_of, train
from tests.unit.evaluate_models import CONFIGS

MAM = ("parallel", "prefix")
AUTOPEFT = ("serial", "parallel", "prefix")
UNIPELT = (*AUTOPEFT, "lora")
SMALL: dict[str, dict[str, Any]] = {
    "serial": {"size": 3},
    "parallel": {"size": 2},
    "prefix": {"length": 2, "bottleneck": 5},
    "lora": {"rank": 2},
}
RELOAD = """
import sys
import torch
import transformers
import autopeft
from safetensors.torch import load_file, save_file

for folder in sys.argv[1:]:
    model = getattr(transformers, "AutoModelFor" + folder.rpartition("-")[2]).from_pretrained(f"{folder}/base")
    model = autopeft.load_adapter(model, f"{folder}/adapter")
    with torch.no_grad():
        logits = model(**load_file(f"{folder}/inputs.safetensors")).logits
    save_file({"logits": logits.contiguous()}, f"{folder}/found.safetensors")
"""


def mix_of(names: tuple[str, ...], layout: ModelLayout, layers: tuple[int, ...] = (0, 2)) -> Candidate:
    insertions = []
    for name in names:
        method = METHODS[name]
        roles = method.default_modules(layout)
        given = {**method.facts.defaults, **SMALL.get(name, {})}
        insertions.append(Insertion(method=name, layers=layers, modules=roles, settings=given))
    return Candidate(insertions=tuple(insertions), learning_rate=1e-3)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_unipelts_mix_trains_and_loads_again_on_every_architecture(kind: str, tmp_path: Path) -> None:
    base = base_of(kind)
    before, candidate = logits_of(base.model, kind), mix_of(UNIPELT, base.layout)
    with removed_afterwards(base.untouched):
        inserted = insert(base.untouched, candidate, base.layout, seed=3)
        count = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
        assert count == sum(METHODS[one.method].trainable(one, base.layout) for one in candidate.insertions)
        started = {
            name: part.detach().clone() for name, part in inserted.model.named_parameters() if part.requires_grad
        }
        train(base, inserted, 2, 1e-2)
        still = [name for name, part in inserted.model.named_parameters() if torch.equal(part, started.get(name, part))]
        stuck = [name for name in still if name in started and not name.startswith(base.layout.head_paths)]
        assert not stuck, "gets no gradient"
        live = logits_of(inserted.model, kind)
        save_adapter(inserted, tmp_path / "adapter")
    assert base.untouched.differences() == []
    assert torch.equal(logits_of(base.model, kind), before)
    fresh = base_of(kind)
    loaded = logits_of(load_adapter(fresh.model, tmp_path / "adapter"), kind)
    assert torch.allclose(loaded, live, atol=1e-5)
    assert (live - before).abs().max() > 0.01 * before.abs().max()


@pytest.mark.parametrize("names", [MAM, AUTOPEFT, (*AUTOPEFT, "bitfit", "lora")], ids="+".join)
@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_the_order_of_a_mix_does_not_matter_to_what_it_computes(kind: str, names: tuple[str, ...]) -> None:
    base, found = base_of(kind), []
    for order in (names, names[::-1]):
        with removed_afterwards(base.untouched):
            candidate = mix_of(order, base.layout)
            inserted = insert(base.untouched, candidate, base.layout, seed=3)
            own = {name: part for name, part in inserted.model.named_parameters() if part.requires_grad}
            heads = base.layout.head_paths or ("no head",)
            with torch.no_grad():
                for name, part in own.items():
                    if not name.startswith(heads):
                        values = torch.linspace(-0.2, 0.3, part.numel(), dtype=part.dtype).view_as(part)
                        part.copy_(values)
            found.append(logits_of(inserted.model, kind))
    assert torch.allclose(*found, atol=1e-5)


def test_each_part_of_a_mix_says_where_it_acts() -> None:
    base = base_of("bert")
    with removed_afterwards(base.untouched):
        inserted = insert(base.untouched, mix_of(AUTOPEFT, base.layout), base.layout, seed=3)
        layers = [base.layout.layers[index] for index in (0, 2)]
        expected = {layer.module(Role.FFN_OUT).path for layer in layers} | {layer.attention for layer in layers}
        assert set(inserted.module_names) == expected


@pytest.mark.slow
def test_a_new_process_loads_every_method_of_ours(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folders, expected = [], []
    for kind, names in (("bert", (*UNIPELT, "bitfit")), ("llama", (*AUTOPEFT, "layernorm")), ("gpt2", ("full",))):
        base = base_of(kind)
        folder = tmp_path / f"{kind}-{'CausalLM' if kind in DECODERS else 'SequenceClassification'}"
        base.model.save_pretrained(folder / "base")
        save_file(inputs_of(kind), folder / "inputs.safetensors")
        layers = (0, 1, 2) if "full" in names else (0, 2)
        with removed_afterwards(base.untouched):
            inserted = insert(base.untouched, mix_of(names, base.layout, layers), base.layout, seed=3)
            train(base, inserted, 2, 1e-2)
            expected.append(logits_of(inserted.model, kind))
            save_adapter(inserted, folder / "adapter")
        folders.append(folder)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RELOAD, *map(str, folders)]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path, timeout=120)
    for folder, logits in zip(folders, expected, strict=True):
        assert torch.allclose(load_file(folder / "found.safetensors")["logits"], logits, atol=1e-5), folder.name
