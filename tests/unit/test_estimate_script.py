"""`autopeft estimate --peft-config`: a plain script's configuration, from a config.json alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from autopeft.app.estimating import ScriptSpec, Step, estimate_script
from autopeft.domain.devices import Device, devices_of, limit_of
from autopeft.domain.errors import UserError
from autopeft.domain.estimate import Estimate
from autopeft.domain.layout import TaskName
from autopeft.domain.spec import ModelSpec
from tests.unit.estimate_models import (
    FFN,
    HIDDEN,
    LAYERS,
    LLAMA,
    PARAMETERS,
    VALUES,
    WORDS,
    estimated,
    model_folder,
    peft_file,
)

PARTS = ("weights", "peft", "gradient", "optimizer", "inputs", "activation", "head", "workspace", "temporary")
Q_AND_V = (HIDDEN + HIDDEN) + (HIDDEN + VALUES)
"""Trained per rank and layer by LoRA on queries and values."""
CONFIGURATIONS: dict[str, tuple[dict[str, Any], int]] = {
    "nothing said": ({"peft_type": "LORA"}, LAYERS * 8 * Q_AND_V),
    "saved for inference": ({"peft_type": "LORA", "r": 4, "inference_mode": True}, LAYERS * 4 * Q_AND_V),
    "a pattern of names": (
        {"peft_type": "LORA", "r": 4, "target_modules": r"model\.layers\.[12]\.mlp\.(up|down)_proj"},
        2 * 4 * 2 * (HIDDEN + FFN),
    ),
    "ranks by pattern": (
        {"peft_type": "LORA", "r": 4, "rank_pattern": {"q_proj": 8}},
        LAYERS * (4 * Q_AND_V + 4 * 128),
    ),
    "some layers": ({"peft_type": "LORA", "r": 4, "layers_to_transform": [1]}, 4 * Q_AND_V),
    "a copy of the embeddings": (
        {"peft_type": "LORA", "r": 4, "modules_to_save": ["lm_head"]},
        LAYERS * 4 * Q_AND_V + WORDS * HIDDEN,
    ),
    "tokens beside": (
        {"peft_type": "LORA", "r": 4, "trainable_token_indices": {"embed_tokens": [1, 2]}},
        LAYERS * 4 * Q_AND_V + 2 * HIDDEN,
    ),
    "DoRA": ({"peft_type": "LORA", "r": 4, "use_dora": True}, LAYERS * (4 * Q_AND_V + HIDDEN + VALUES)),
    "IA3": (
        {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj"], "feedforward_modules": []},
        LAYERS * 2 * VALUES,
    ),
    "norms": ({"peft_type": "LN_TUNING"}, (2 * LAYERS + 1) * HIDDEN),
    "VeRA": ({"peft_type": "VERA", "r": 16}, LAYERS * (2 * 16 + HIDDEN + VALUES)),
    "prefix": (
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5, "task_type": "CAUSAL_LM"},
        5 * LAYERS * 2 * VALUES,
    ),
    "prompt": ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}, 5 * HIDDEN),
    "prompt from a text": (
        {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": 5,
            "task_type": "CAUSAL_LM",
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": "say whether",
            "tokenizer_name_or_path": "nobody/has-this",
        },
        5 * HIDDEN,
    ),
    "a random start by data": ({"peft_type": "LORA", "r": 4, "init_lora_weights": "corda"}, LAYERS * 4 * Q_AND_V),
    "adapters of LLaMA": (
        {"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 2, "task_type": "CAUSAL_LM"},
        2 * (4 * HIDDEN + 1),
    ),
    "classification": ({"peft_type": "LORA", "r": 4, "task_type": "SEQ_CLS"}, LAYERS * 4 * Q_AND_V + 2 * HIDDEN),
    "SHiRA": ({"peft_type": "SHIRA", "r": 4}, LAYERS * 4 * Q_AND_V),
    "OFT": (
        {"peft_type": "OFT", "oft_block_size": 16, "target_modules": ["q_proj"]},
        LAYERS * HIDDEN // 16 * (16 * 15 // 2),
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_trains_is_counted_as_its_formula_says(tmp_path: Path, name: str) -> None:
    said, count = CONFIGURATIONS[name]
    found = estimated(tmp_path, **said)
    assert found.trainable_parameters == count
    assert sum(getattr(found, f"{part}_bytes") for part in PARTS) == found.train_peak_bytes
    assert len(found.layer_activation_bytes) == LAYERS
    assert found.train_peak_reserved_bytes is not None
    assert found.train_peak_reserved_bytes >= found.train_peak_bytes


@pytest.mark.parametrize(
    "kind", ["ADAMSS", "ADALORA", "FROD", "GRALORA", "HRA", "LOHA", "LOKR", "MISS", "RANDLORA", "WAVEFT"]
)
def test_what_trains_is_what_peft_itself_puts_into_real_weights(tmp_path: Path, kind: str) -> None:
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoModelForCausalLM, LlamaConfig

    said = {"ADALORA": {"total_step": 10}, "WAVEFT": {"n_frequency": 10}}.get(kind, {})
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[kind](**said))
    count = sum(part.numel() for part in real.parameters() if part.requires_grad)
    assert estimated(tmp_path, peft_type=kind, **said).trainable_parameters == count


def test_weights_adapters_and_moments_are_known_to_the_byte(tmp_path: Path) -> None:
    found = estimated(tmp_path, peft_type="LORA", r=4)
    count = LAYERS * 4 * Q_AND_V
    buffers = found.weights_bytes - 2 * PARAMETERS
    assert 0 <= buffers <= 256  # frequencies of the rotary positions
    assert found.peft_bytes == 4 * count  # in float32
    moments = found.optimizer_bytes - 8 * count
    assert 0 <= moments <= 4 * 4 * LAYERS  # and AdamW's step of each tensor, which lies on the host
    whole = estimated(tmp_path)
    assert whole.trainable_parameters == PARAMETERS
    assert whole.peft_bytes == 0
    assert whole.configuration == "full fine-tuning"
    assert whole.optimizer_bytes >= 4 * PARAMETERS  # moments are in the dtype of the weights


def test_the_indices_of_single_weights_are_held_though_no_module_names_them(tmp_path: Path) -> None:
    found = estimated(tmp_path, peft_type="SHIRA", r=4)
    # Weights in float32, and where they lie: a row and a column in int32 each.
    assert found.peft_bytes == found.trainable_parameters * (4 + 2 * 4)


def test_adapters_in_the_base_s_dtype_take_half(tmp_path: Path) -> None:
    model = ModelSpec(source=str(model_folder(tmp_path / "model")), dtype="bfloat16")
    peft = str(peft_file(tmp_path, peft_type="LORA", r=4))
    halves = [
        estimate_script(ScriptSpec(model, peft, adapters_in_float32=whole), Step(rows=2, tokens=24)).peft_bytes
        for whole in (True, False)
    ]
    assert halves[0] == 2 * halves[1] > 0


def test_the_largest_batch_fits_and_one_row_more_does_not(tmp_path: Path) -> None:
    limit = limit_of("24MiB", "--max-memory")
    found = estimated(tmp_path, Step(largest=True, tokens=24, devices=(limit,)), peft_type="LORA", r=4)
    rows = found.training.batch
    assert found.devices[0].batch == rows > 1
    for asked, verdict in ((rows, "fits"), (rows + 1, "no")):
        again = estimated(tmp_path, Step(rows=asked, tokens=24, devices=(limit,)), peft_type="LORA", r=4)
        assert again.devices[0].verdict == verdict
        assert again.devices[0].train_peak_bytes == again.train_peak_bytes


def test_each_device_has_its_own_batch_and_workspaces(tmp_path: Path) -> None:
    small = Device("small", "small", 700 << 20)
    devices = (*devices_of("h100"), small)
    found = estimated(tmp_path, Step(rows=2, tokens=24, devices=devices), peft_type="LORA", r=4)
    big, little = found.devices
    assert big.train_peak_bytes is not None
    assert little.train_peak_bytes is not None
    assert big.train_peak_bytes - little.train_peak_bytes == devices[0].workspace_bytes - small.workspace_bytes
    assert found.workspace_bytes == devices[0].workspace_bytes


def test_no_batch_fits_where_one_row_does_not(tmp_path: Path) -> None:
    limit = limit_of("16MiB", "--max-memory")
    found = estimated(tmp_path, Step(largest=True, tokens=200, devices=(limit,)))
    assert found.devices[0].batch is None
    assert found.devices[0].verdict == "no"
    assert found.training.batch == 1


def test_keys_that_the_installed_peft_does_not_know_are_said(tmp_path: Path) -> None:
    found = estimated(tmp_path, peft_type="LORA", r=4, invented=3, off=None, peft_version="9.9")
    assert len(found.notices) == 1
    assert "invented" in found.notices[0]
    assert "off" not in found.notices[0]
    assert Estimate.model_validate_json(found.model_dump_json()) == found


def test_a_task_takes_the_place_of_one_that_cannot_be_foretold(tmp_path: Path) -> None:
    model = ModelSpec(source=str(model_folder(tmp_path / "model")))
    peft = str(peft_file(tmp_path, peft_type="LORA", r=4, task_type="TOKEN_CLS"))
    with pytest.raises(UserError, match="--task"):
        estimate_script(ScriptSpec(model, peft), Step(rows=2, tokens=24))
    asked = ScriptSpec(model, peft, task=TaskName.SEQUENCE_CLASSIFICATION)
    found = estimate_script(asked, Step(rows=2, tokens=24))
    assert found.trainable_parameters == LAYERS * 4 * Q_AND_V + 2 * HIDDEN


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"peft_type": "LORA", "target_modules": ["nothing_like_it"]}, "nothing_like_it"),
        ({"peft_type": "LORAX"}, "LORAX"),
        ({"r": 8}, "names no peft_type"),
        ({"peft_type": "LORA", "r": 0}, "positive"),
        ({"peft_type": "LORA", "r": "many", "lora_dropout": True}, "r: .many. is no number"),
        ({"peft_type": "LORA", "target_modules": 5}, "--peft-config"),
        ({"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM"}, "--peft-config"),
        ({"peft_type": "POLY"}, "must be measured"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named(tmp_path: Path, said: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        estimated(tmp_path, **said)
    assert all(problem.where.startswith("--peft-config") for problem in refused.value.problems)
    assert all(problem.next_step or problem.allowed for problem in refused.value.problems)


@pytest.mark.parametrize(
    ("text", "says"), [("{'r': 8}", "not readable JSON"), ("[]", "not a JSON object"), ("", "JSON")]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    model = ModelSpec(source=str(model_folder(tmp_path / "model")))
    path = tmp_path / "adapter_config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        estimate_script(ScriptSpec(model, str(path)), Step())
    with pytest.raises(UserError, match="there is no file"):
        estimate_script(ScriptSpec(model, str(tmp_path / "gone.json")), Step())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": None}, "leaves out num_hidden_layers"),
        ({"model_type": None}, "has no model_type"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"model_type": "lama"}, "lama"),
        ({"hidden_size": 66, "head_dim": None}, r"hidden size \(66\) is not a multiple"),
    ],
)
def test_a_config_without_what_is_needed_is_refused_with_the_configuration_s_mistakes(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    model = ModelSpec(source=str(model_folder(tmp_path / "model", **changes)))
    with pytest.raises(UserError, match=says):
        estimate_script(ScriptSpec(model, str(peft_file(tmp_path, peft_type="LORA"))), Step(rows=1, tokens=8))
    with pytest.raises(UserError) as refused:
        estimate_script(ScriptSpec(model, str(tmp_path / "gone.json")), Step(largest=True))
    assert "names no" not in str(refused.value)
    assert "--batch" in str(refused.value)
    assert "there is no file" in str(refused.value)


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(LLAMA)[:-5], encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read") as refused:
        estimate_script(ScriptSpec(ModelSpec(source=str(folder)), "none"), Step())
    assert "safetensors" not in str(refused.value), "weights are no part of an estimate"


def test_rows_and_memory_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows of 300 tokens") as refused:
        estimated(tmp_path, Step(rows=1, tokens=300, devices=(limit_of("100kB", "--max-memory"),)), peft_type="LORA")
    assert "less than the base model's weights" in refused.value.problems[1].found
    with pytest.raises(UserError, match="needs a limit"):
        estimated(tmp_path, Step(largest=True), peft_type="LORA")


def test_a_base_in_few_bits_is_as_peft_prepares_it_and_that_is_said(tmp_path: Path) -> None:
    model = ModelSpec(source=str(model_folder(tmp_path / "model")), dtype="bfloat16", load_in="4bit")
    peft = str(peft_file(tmp_path, peft_type="LORA", r=4))
    found = estimate_script(ScriptSpec(model, peft), Step(rows=2, tokens=24))
    linear = PARAMETERS - WORDS * HIDDEN - (2 * LAYERS + 1) * HIDDEN
    outside = found.weights_bytes - 4 * (PARAMETERS - linear)
    assert linear / 2 < outside < linear / 2 * 1.05  # constants of the quantisation, and rotary frequencies
    assert found.training.dtype == "float32"
    assert "float32" in found.notices[0]
    assert "--gradient-checkpointing" in found.notices[0]
    saving = estimate_script(ScriptSpec(model, peft, gradient_checkpointing=True), Step(rows=2, tokens=24))
    assert "--gradient-checkpointing" not in saving.notices[0]
    with pytest.raises(UserError, match="weights in few bits cannot train"):
        estimate_script(ScriptSpec(model, "none"), Step(rows=2, tokens=24))
