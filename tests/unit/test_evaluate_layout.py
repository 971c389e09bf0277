"""Layouts are found by looking at the modules: every architecture, no table of names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from autopeft.domain.errors import UserError
from autopeft.domain.layout import Role
from autopeft.evaluate.layout import inspect_layout
from tests.unit.evaluate_models import CONFIGS, LAYERS, classifier_of, config_of

SPLIT = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT, Role.FFN_IN, Role.FFN_OUT)
GATED = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT, Role.FFN_IN, Role.FFN_GATE, Role.FFN_OUT)
FUSED = (Role.QKV, Role.ATTENTION_OUTPUT, Role.FFN_IN, Role.FFN_OUT)
ROLES = {
    "bert": SPLIT,
    "roberta": SPLIT,
    "distilbert": SPLIT,
    "deberta-v2": SPLIT,
    "opt": SPLIT,
    "gpt2": FUSED,
    "llama": GATED,
    "qwen2": GATED,
    "gemma": GATED,
    "mistral": GATED,
}
LAST_NAMES = {
    "bert": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "2.output.dense"),
    "roberta": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "2.output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    "deberta-v2": (
        "query_proj",
        "key_proj",
        "value_proj",
        "attention.output.dense",
        "intermediate.dense",
        "2.output.dense",
    ),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    **dict.fromkeys(
        ("llama", "qwen2", "gemma", "mistral"),
        ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"),
    ),
}
HEADS = {"distilbert": {"pre_classifier", "classifier"}, "deberta-v2": {"pooler", "classifier"}}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_layer_has_the_roles_of_its_architecture(kind: str) -> None:
    layout = inspect_layout(classifier_of(kind))
    assert len(layout.layers) == LAYERS
    assert layout.roles() == ROLES[kind]
    for module, name in zip(layout.layers[2].modules, LAST_NAMES[kind], strict=True):
        assert f".{module.path}".endswith(f"{'' if name[0].isdigit() else '.'}{name}")


@pytest.mark.parametrize("kind", CONFIGS)
def test_paths_and_widths_are_those_of_the_live_modules(kind: str) -> None:
    model = classifier_of(kind)
    for layer in inspect_layout(model).layers:
        for module in layer.modules:
            live = model.get_submodule(module.path)
            shape = tuple(live.weight.shape)
            expected = shape[::-1] if isinstance(live, nn.Linear) else shape
            assert (module.in_features, module.out_features) == expected
            assert module.path.startswith(f"{layer.path}.")


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_head_is_what_lies_outside_the_pretrained_body(kind: str) -> None:
    model = classifier_of(kind)
    heads = inspect_layout(model).head_paths
    outside = {name.split(".")[0] for name, _ in model.named_parameters()} - {model.base_model_prefix}
    assert set(heads) == outside
    assert set(heads) == HEADS.get(kind, {"classifier"} if "bert" in kind else {"score"})


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_meta_device_gives_the_same_layout(kind: str) -> None:
    with torch.device("meta"):
        bare = AutoModelForSequenceClassification.from_config(config_of(kind))
    assert inspect_layout(bare) == inspect_layout(classifier_of(kind))


@pytest.mark.parametrize("kind", CONFIGS)
def test_sizes_count_every_parameter_once(kind: str) -> None:
    model = classifier_of(kind)
    layout = inspect_layout(model)
    assert layout.parameters == model.num_parameters()
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert layout.weights_bytes == 4 * layout.parameters + buffers
    assert (layout.hidden_size, layout.heads) == (16, 4)
    assert layout.kv_heads == {"llama": 2, "qwen2": 2, "mistral": 2, "gemma": 1}.get(kind, 4)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 64), ("roberta", 64), ("gpt2", 64), ("llama", 64)])
def test_positions_behind_a_padding_index_do_not_count(kind: str, limit: int) -> None:
    assert inspect_layout(classifier_of(kind)).max_positions == limit


def test_modules_that_the_checkpoint_lacks_are_trained_with_the_head() -> None:
    model = classifier_of("bert")
    lacking = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight")
    assert inspect_layout(model, lacking).head_paths == ("classifier", "bert.pooler.dense")


def test_a_checkpoint_that_lacks_weights_of_a_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"lacks 'bert\.encoder\.layer\.1\.output\.dense\.weight'"):
        inspect_layout(classifier_of("bert"), ("bert.encoder.layer.1.output.dense.weight",))


def test_a_model_without_repeated_blocks_is_refused() -> None:
    model = classifier_of("bert")
    model.bert.encoder.layer = nn.Identity()
    with pytest.raises(UserError, match="no list of repeated blocks"):
        inspect_layout(model)


def test_a_feed_forward_part_as_wide_as_the_model_is_told_apart_by_order() -> None:
    config = config_of("bert")
    config.intermediate_size = config.hidden_size
    layout = inspect_layout(AutoModelForSequenceClassification.from_config(config))
    assert layout.roles() == SPLIT
    assert layout.layers[0].module(Role.FFN_IN).path.endswith("intermediate.dense")  # type: ignore[union-attr]
    assert layout.layers[0].module(Role.FFN_OUT).path == "bert.encoder.layer.0.output.dense"  # type: ignore[union-attr]
