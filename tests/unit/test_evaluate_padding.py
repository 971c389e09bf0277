"""Batches are padded with the token that the model's head takes for padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.evaluate_models import classifier_of, save_model
from tests.unit.evaluate_trials import opened, spec_of


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "qwen2", "gemma", "mistral"])
def test_every_decoder_classifies_by_the_last_real_token(kind: str) -> None:
    model = classifier_of(kind)
    rows = [[5, 9, 7], [6, 8, 11, 4, 10, 12, 9], [13]]
    width, pad = max(map(len, rows)), model.config.pad_token_id
    together = {
        "input_ids": torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
        torch.testing.assert_close(model(**together).logits, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("configured", "expected"), [(5, 5), (-1, 0), (None, 0)])
def test_a_decoder_says_the_same_of_a_row_alone_and_in_a_batch(
    tmp_path: Path, configured: int | None, expected: int
) -> None:
    save_model(tmp_path / "llama", "llama")
    path = tmp_path / "llama" / "config.json"
    text = path.read_text()
    assert '"pad_token_id": 0' in text
    path.write_text(
        text.replace('"pad_token_id": 0', f'"pad_token_id": {"null" if configured is None else configured}')
    )
    evaluator = opened(spec_of(tmp_path, "llama"))
    model = evaluator._bench.model
    assert model.config.pad_token_id == expected
    batch = next(one for one in evaluator._bench.validation.batches if not one.inputs["attention_mask"].all())
    with torch.no_grad():
        together = model(**batch.inputs).logits
        lengths = batch.inputs["attention_mask"].sum(dim=1).tolist()
        alone = [
            model(input_ids=row[None, :length]).logits
            for row, length in zip(batch.inputs["input_ids"], lengths, strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
