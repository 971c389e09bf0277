"""A pruned model with even widths becomes a folder that transformers loads; any other is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from autopeft.domain.errors import UserError
from autopeft.evaluate.pruning.whole import save_whole
from tests.unit.pruning_models import Bed, padded


def trained(kind: str, methods: tuple[str, ...] = ("lora",), **settings: Any) -> Bed:
    bed = Bed(kind, methods, **{"ffn_scope": "layer", **settings})
    bed.randomise()
    bed.train(4)
    bed.estimation.prune()
    bed.train(1)
    return bed


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("mistral", {"ffn": 0.0}),
        ("llama", {"heads": 0.0}),
        ("bert", {"heads": 0.0}),
        ("distilbert", {"heads": 0.0}),
        ("opt", {"heads": 0.0}),
        ("gpt2", {"heads": 0.0}),
    ],
)
def test_transformers_alone_loads_it_and_says_the_same(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    bed = trained(kind, **settings)
    before = bed.logits()
    save_whole(bed.model, bed.layout, tmp_path / "whole")
    assert torch.equal(bed.logits(), before), "the model itself stays as it was"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    parameters = sum(part.numel() for part in loaded.parameters())
    assert parameters < bed.layout.parameters
    with torch.no_grad():
        torch.testing.assert_close(loaded(**padded()).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "methods", "settings", "said"),
    [
        ("llama", ("lora",), {"ffn_scope": "global"}, "different numbers of heads or units"),
        ("llama", ("serial",), {}, "bottleneck adapters cannot be merged"),
        ("bert", ("lora",), {}, "the configuration of 'bert' cannot say 2 groups of heads"),
        ("gpt2", ("lora",), {}, "the configuration of 'gpt2' cannot say 2 groups of heads"),
    ],
)
def test_what_no_ordinary_folder_can_say_is_refused(
    kind: str, methods: tuple[str, ...], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    bed = trained(kind, methods, **settings)
    with pytest.raises(UserError, match=said):
        save_whole(bed.model, bed.layout, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
