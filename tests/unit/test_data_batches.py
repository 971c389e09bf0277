"""Batches hold every row once, pad little, keep their order from the seed, and give predictions back in order."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autopeft.evaluate.data.batches import (
    Batch,
    Padding,
    TokenisedSplit,
    evaluation_batches,
    plan,
    tokenised,
    train_batches,
)
from autopeft.evaluate.data.table import Split

PAD = Padding(0)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>", *(f"w{i}" for i in range(20))]


def tokenizer(kind: str) -> Any:
    """A small tokenizer in the way of `bert` (pairs, types, pad token) or of a `decoder` (none of them)."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if kind == "decoder":
        return PreTrainedTokenizerFast(
            tokenizer_object=raw,
            eos_token="<eos>",
            unk_token="[UNK]",
            padding_side="left",
            model_input_names=["input_ids", "attention_mask"],
        )
    raw.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=12,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="module")
def split() -> TokenisedSplit:
    random = np.random.default_rng(0)
    rows = tuple(tuple(random.integers(5, 25, random.integers(3, 80)).tolist()) for _ in range(205))
    return TokenisedSplit(rows, None, tuple(i % 3 for i in range(205)))


def restored(batch: Batch, row: int) -> tuple[int, ...]:
    """The row's tokens, as the attention mask shows them."""
    return tuple(batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()].tolist())


@pytest.mark.parametrize(
    "of", [lambda split: train_batches(split, 16, 3, PAD), lambda split: evaluation_batches(split, 16, PAD)]
)
def test_every_row_is_in_the_batches_once_and_whole(of: Any, split: TokenisedSplit) -> None:
    batches: list[Batch] = of(split)
    assert sorted(row for batch in batches for row in batch.row_ids) == list(range(len(split)))
    assert all(batch.rows == 16 for batch in batches[:-1])
    assert batches[-1].rows == 205 % 16
    for batch in batches:
        for position, row in enumerate(batch.row_ids):
            assert restored(batch, position) == split.token_ids[row]
            assert batch.labels[position] == split.labels[row]
        assert batch.tokens == int(batch.inputs["attention_mask"].sum())


def test_rows_of_like_length_are_together(split: TokenisedSplit) -> None:
    for batches in (train_batches(split, 16, 3, PAD), evaluation_batches(split, 16, PAD)):
        room = sum(batch.inputs["input_ids"].numel() for batch in batches)
        assert 1 - sum(batch.tokens for batch in batches) / room < 0.1


def test_rows_are_mixed_anew_by_every_seed(split: TokenisedSplit) -> None:
    one, same, other = (train_batches(split, 16, seed, PAD) for seed in (1, 1, 2))
    assert [batch.row_ids for batch in one] == [batch.row_ids for batch in same]
    assert {frozenset(batch.row_ids) for batch in one} != {frozenset(batch.row_ids) for batch in other}


def test_row_ids_put_predictions_back_in_order(split: TokenisedSplit) -> None:
    batches = evaluation_batches(split, 32, PAD)
    lengths = torch.cat([batch.inputs["attention_mask"].sum(dim=1) for batch in batches])
    order = torch.tensor([row for batch in batches for row in batch.row_ids])
    back = torch.empty_like(lengths)
    back[order] = lengths
    assert back.tolist() == [len(row) for row in split.token_ids]


def test_a_plan_goes_through_all_batches_in_every_epoch_in_another_order(split: TokenisedSplit) -> None:
    batches = train_batches(split, 16, 0, PAD)
    count = len(batches)
    planned = [batch.row_ids for batch in plan(batches, 2 * count + 3, seed=5)]
    assert len(planned) == 2 * count + 3
    first, second = planned[:count], planned[count : 2 * count]
    assert sorted(first) == sorted(second) == sorted(batch.row_ids for batch in batches)
    assert first != second
    assert planned == [batch.row_ids for batch in plan(batches, 2 * count + 3, seed=5)]
    assert planned[:count] != [batch.row_ids for batch in plan(batches, count, seed=6)]


def test_a_shorter_plan_is_the_beginning_of_a_longer_one(split: TokenisedSplit) -> None:
    batches = train_batches(split, 16, 0, PAD)
    short, long = ([batch.row_ids for batch in plan(batches, passes, 1)] for passes in (7, 40))
    assert long[:7] == short


def test_there_is_no_plan_without_batches() -> None:
    with pytest.raises(ValueError, match="no batches"):
        plan([], 3, 0)


def test_pairs_carry_the_types_of_their_tokens() -> None:
    rows = tokenised(Split(("w1 w2", "w3"), ("w4", "w5 w6"), (0, 1)), tokenizer("bert"), 64)
    assert rows.token_ids == ((2, 6, 7, 3, 9, 3), (2, 8, 3, 10, 11, 3))
    assert rows.token_type_ids == ((0, 0, 0, 0, 1, 1), (0, 0, 0, 1, 1, 1))
    (batch,) = evaluation_batches(rows, 8, PAD)
    assert batch.inputs["token_type_ids"].shape == (2, 6)
    assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.int64}


def test_long_rows_are_cut_to_the_asked_for_and_to_the_model_s_length() -> None:
    long = Split((" ".join(["w1"] * 50),), None, (0,))
    assert len(tokenised(long, tokenizer("bert"), 7).token_ids[0]) == 7
    assert len(tokenised(long, tokenizer("bert"), 128).token_ids[0]) == 12
    assert len(tokenised(long, tokenizer("decoder"), 128).token_ids[0]) == 50


def test_a_tokenizer_without_pad_token_pads_with_end_of_text_on_the_right() -> None:
    decoder = tokenizer("decoder")
    rows = tokenised(Split(("w1", "w1 w2 w3"), None, (0.5, 1.5)), decoder, 64)
    pad = Padding.of(decoder)
    assert rows.token_type_ids is None
    assert pad == Padding(4, side="right")
    (batch,) = train_batches(rows, 8, 0, pad)
    short = batch.row_ids.index(0)
    assert batch.inputs["input_ids"][short].tolist() == [6, 4, 4]
    assert batch.inputs["attention_mask"][short].tolist() == [1, 0, 0]
    assert batch.labels.dtype == torch.float32
    assert batch.tokens == 4


def test_a_tokenizer_with_nothing_to_pad_with_is_refused() -> None:
    bare = tokenizer("decoder")
    bare.eos_token = None
    with pytest.raises(ValueError, match="pad token"):
        Padding.of(bare)


def test_class_labels_are_int64() -> None:
    (batch,) = evaluation_batches(TokenisedSplit(((5, 6),), None, (1,)), 4, PAD)
    assert batch.labels.dtype == torch.int64


def test_a_row_without_tokens_is_not_masked_out_completely() -> None:
    (batch,) = evaluation_batches(TokenisedSplit(((), (5, 6)), None, (0, 1)), 4, PAD)
    assert batch.inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
