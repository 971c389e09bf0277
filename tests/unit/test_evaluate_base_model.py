"""Base models: found, checked and loaded; what a person got wrong is said in words."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.errors import UserError
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ModelSpec, SearchSpec
from autopeft.evaluate import source
from autopeft.evaluate.base_model import build_on_meta, load_base_model
from autopeft.evaluate.devices import choose_device, devices
from autopeft.evaluate.inspection import inspect_run
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.source import fingerprint, hub_reachable, source_of
from tests.unit.evaluate_models import TASK, save_model, write_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def refused(spec: ModelSpec) -> str:
    with pytest.raises(UserError) as caught:
        load_base_model(spec, TASK, seed=0)
    return str(caught.value)


def changed(folder: Path, **changes: Any) -> ModelSpec:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return ModelSpec(source=str(folder))


def test_the_head_is_a_function_of_the_seed_and_the_body_of_the_checkpoint(folder: Path) -> None:
    spec = ModelSpec(source=str(folder))
    first, again, other = (load_base_model(spec, TASK, seed).model for seed in (1, 1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, other.state_dict()[name]) != (name == "classifier.weight"), name


def test_loading_leaves_the_random_stream_of_the_process_alone(folder: Path) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    load_base_model(ModelSpec(source=str(folder)), TASK, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_labels_and_problem_type_come_from_the_task(folder: Path) -> None:
    three = TaskInfo(kind="classification", labels=("x", "y", "z"), metric="accuracy", metrics=(), rows={})
    config = load_base_model(ModelSpec(source=str(folder)), three, 0).model.config
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")
    assert config.id2label == {0: "x", 1: "y", 2: "z"}
    number = TaskInfo(kind="regression", metric="spearman", metrics=(), rows={})
    config = load_base_model(ModelSpec(source=str(folder)), number, 0).model.config
    assert (config.num_labels, config.problem_type) == (1, "regression")


def test_a_decoder_without_pad_token_pads_with_its_end_token(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "gpt2", "gpt2")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    spec = changed(folder, pad_token_id=None)
    base = load_base_model(spec, TASK, 0)
    assert base.tokenizer.pad_token == "[SEP]"
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id == 3


def test_the_meta_build_agrees_with_the_loaded_model(folder: Path) -> None:
    spec = ModelSpec(source=str(folder))
    bare, loaded = build_on_meta(spec, TASK), load_base_model(spec, TASK, 0)
    assert {parameter.device.type for parameter in bare.model.parameters()} == {"meta"}
    assert (bare.new_parameters, bare.fingerprint) == (loaded.new_parameters, loaded.fingerprint)
    assert bare.new_parameters == ("classifier.bias", "classifier.weight")
    assert inspect_layout(bare.model) == inspect_layout(loaded.model)


@pytest.mark.parametrize(("dtype", "size"), [("auto", 4), ("float32", 4), ("bfloat16", 2)])
def test_weights_are_loaded_in_the_dtype_asked_for(folder: Path, dtype: Any, size: int) -> None:
    model = load_base_model(ModelSpec(source=str(folder), dtype=dtype), TASK, 0).model
    assert {parameter.element_size() for parameter in model.bert.parameters()} == {size}
    assert {parameter.element_size() for parameter in model.classifier.parameters()} == {4}


def test_the_fingerprint_follows_weights_and_config(folder: Path, tmp_path: Path) -> None:
    first = fingerprint(source_of(ModelSpec(source=str(folder))))
    assert len(first) == 16
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(source_of(ModelSpec(source=str(copied)))) == first
    assert fingerprint(source_of(changed(copied, layer_norm_eps=1e-3))) != first
    other = save_model(tmp_path / "gpt2", "gpt2")
    assert fingerprint(source_of(ModelSpec(source=str(other)))) != first


def test_a_pooler_that_the_checkpoint_lacks_joins_the_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    base = build_on_meta(ModelSpec(source=str(folder)), TASK)
    assert inspect_layout(base.model, base.new_parameters).head_paths == ("classifier", "bert.pooler.dense")


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(ModelSpec(source=str(folder)))
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter, not a base model" in refused(ModelSpec(source=str(folder)))


def test_a_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "cannot be read" in refused(ModelSpec(source=str(folder)))


def test_a_folder_that_does_not_exist_or_is_a_file_is_refused(folder: Path) -> None:
    assert "there is no folder '/no/such/place'" in refused(ModelSpec(source="/no/such/place"))
    assert "is a file, not a model folder" in refused(ModelSpec(source=str(folder / "config.json")))


def test_pickled_and_missing_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused(ModelSpec(source=str(folder)))
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    found = refused(ModelSpec(source=str(folder)))
    assert "pickled weights only (pytorch_model.bin)" in found
    assert "save_pretrained" in found
    (folder / "pytorch_model.bin").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks weight files" in refused(ModelSpec(source=str(folder)))


def test_a_model_type_without_classification_head_is_refused(folder: Path) -> None:
    found = refused(changed(folder, model_type="clip"))
    assert "model type 'clip' has no sequence-classification head" in found
    assert "types, among them bert" in found


def test_code_of_the_model_runs_only_where_allowed(folder: Path) -> None:
    spec = changed(folder, model_type="own", auto_map={"AutoModelForSequenceClassification": "modeling.Own"})
    found = refused(spec)
    assert found.startswith("model.trust_remote_code: ")
    assert "running it is not allowed" in found


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert "cannot be loaded" in refused(ModelSpec(source=str(folder)))


def test_a_hub_out_of_reach_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    asked: list[float] = []

    def unreachable(*_: Any, timeout: float, **__: Any) -> Any:
        asked.append(timeout)
        raise ConnectionError("no route")

    monkeypatch.setattr(source.HfApi, "model_info", unreachable)
    started = time.monotonic()
    found = refused(ModelSpec(source="nobody/no-such-model-5f3a"))
    assert "neither a folder nor in the hub's cache, and the hub cannot be reached (ConnectionError)" in found
    assert asked == [source._HUB_TIMEOUT_S]
    assert time.monotonic() - started < 60


def test_an_unreachable_hub_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_reachable(timeout_s=1.0) is False


def test_without_the_package_and_the_hub_the_default_model_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda _: None)

    def offline(*_: Any, **__: Any) -> Any:
        raise source.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(source, "snapshot_download", offline)
    monkeypatch.setattr(source.HfApi, "model_info", offline)
    with pytest.raises(UserError, match=r"python -m pip install 'autopeft\[demo\]'"):
        source_of(ModelSpec())


def test_inspection_describes_model_and_data_without_loading_weights(folder: Path, tmp_path: Path) -> None:
    spec = SearchSpec.model_validate(
        {"model": str(folder), "data": {**write_data(tmp_path / "data"), "max_tokens": 100}}
    )
    found = inspect_run(spec)
    assert (len(found.layout.layers), found.layout.head_paths) == (3, ("classifier",))
    assert found.task.labels == ("bad", "good")
    assert found.task.rows == {"train": 96, "validation": 40, "test": 40}
    assert len(found.model_fingerprint) == len(found.data_fingerprint) == 16
    assert any("takes 64 tokens at most" in notice for notice in found.notices)


def test_mistakes_in_model_and_data_are_shown_together(tmp_path: Path) -> None:
    spec = SearchSpec.model_validate(
        {"model": "/no/such/model", "data": {"train": "/no/train.jsonl", "validation": "/no/dev.jsonl"}}
    )
    with pytest.raises(UserError) as caught:
        inspect_run(spec)
    found = str(caught.value)
    assert "/no/such/model" in found
    assert "/no/train.jsonl" in found


def test_devices_are_those_of_torch() -> None:
    facts = devices()
    assert facts.cores >= 1
    assert facts.memory_bytes > 2**28
    assert facts.gpus == len(facts.gpu_names) == len(facts.gpu_memory_bytes)
    assert choose_device("auto").type == ("cuda" if facts.gpus else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
