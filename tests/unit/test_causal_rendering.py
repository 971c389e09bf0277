"""A row's tokens: the prompt as it is generated after, labels on what is to be written, cuts that keep the answer."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from autopeft.domain.errors import UserError
from autopeft.evaluate.data.batches import NO_LABEL, Padding, evaluation_batches
from autopeft.evaluate.data.table import Exchange, Message
from autopeft.evaluate.tasks.causal_lm import as_split
from autopeft.evaluate.tasks.rendering import Renderer, check_template
from tests.unit.causal_models import TEMPLATE, word_tokenizer
from tests.unit.evaluate_models import WORDS

ROW = Exchange("the film was", "very great")
CHAT = (
    Message("user", "film"),
    Message("assistant", "great"),
    Message("user", "scene"),
    Message("assistant", "very dull"),
)


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())


def renderer(template: str | None = None) -> Renderer:
    return Renderer(word_tokenizer(template), (3,))


def merging() -> Any:
    """A tokenizer in which `ab` is one token."""
    raw = Tokenizer(models.BPE({"a": 0, "b": 1, "x": 2, "ab": 3, "</s>": 4}, [("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")


def test_only_the_completion_and_its_end_are_learned() -> None:
    found = renderer().row(ROW, 64)
    assert found.token_ids == (*ids("[CLS] the film was very great [SEP]"),)
    assert found.labels == (*[NO_LABEL] * 4, *ids("very great [SEP]"))
    assert (found.cut_prompt, found.cut_completion) == (False, False)


def test_no_token_spans_prompt_and_completion() -> None:
    tokenizer = merging()
    assert tokenizer("xab")["input_ids"] == [2, 3]  # together, the boundary would be inside a token
    found = Renderer(tokenizer, (4,)).row(Exchange("xa", "b"), 64)
    assert found.token_ids == (2, 0, 1, 4)
    assert found.labels == (NO_LABEL, NO_LABEL, 1, 4)
    assert Renderer(tokenizer, (4,)).prompt(Exchange("xa", "b"), 64) == found.token_ids[:2]


def test_a_completion_that_brings_its_end_gets_no_second_one() -> None:
    assert renderer().row(Exchange("film", "great [SEP]"), 64).token_ids == ids("[CLS] film great [SEP]")


def test_the_beginning_of_the_prompt_is_cut_so_that_the_completion_stays() -> None:
    found = renderer().row(ROW, 6)
    assert found.token_ids == ids("[CLS] film was very great [SEP]")
    assert (found.cut_prompt, found.cut_completion) == (True, False)


def test_a_completion_is_cut_only_where_it_does_not_fit_by_itself() -> None:
    found = renderer().row(ROW, 4)
    assert found.token_ids == ids("[CLS] was very great")
    assert found.labels == (NO_LABEL, NO_LABEL, *ids("very great"))
    assert (found.cut_prompt, found.cut_completion) == (True, True)


@pytest.mark.parametrize("limit", range(2, 12))
def test_no_row_is_longer_than_the_limit_and_every_row_learns_something(limit: int) -> None:
    rows = [renderer().row(ROW, limit), renderer(TEMPLATE).row(Exchange("", "", CHAT), limit)]
    for row in rows:
        assert len(row.token_ids) == len(row.labels) <= limit
        assert any(label != NO_LABEL for label in row.labels)


def test_of_a_chat_the_turns_of_the_assistant_are_learned() -> None:
    found = renderer(TEMPLATE).row(Exchange("", "", CHAT), 64)
    assert found.token_ids == ids("the film [SEP] a great [SEP] the scene [SEP] a very dull [SEP]")
    expected = [NO_LABEL] * 4 + [*ids("great [SEP]")] + [NO_LABEL] * 4 + [*ids("very dull [SEP]")]
    assert found.labels == tuple(expected)


def test_an_answer_is_generated_after_the_chat_before_it() -> None:
    found = renderer(TEMPLATE).prompt(Exchange("", "", CHAT), 64)
    assert found == ids("the film [SEP] a great [SEP] the scene [SEP] a")


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    shrinking = "{% for m in messages[-1:] %}{{ m.content }} [SEP]{% endfor %}"
    with pytest.raises(ValueError, match="one after another"):
        renderer(shrinking).row(Exchange("", "", CHAT), 64)


def test_chats_without_a_template_are_refused_with_what_to_do() -> None:
    check_template(word_tokenizer(TEMPLATE), chat=True)
    check_template(word_tokenizer(), chat=False)
    with pytest.raises(UserError) as caught:
        check_template(word_tokenizer(), chat=True)
    assert "no chat template" in caught.value.problems[0].found
    assert "prompt and completion" in caught.value.problems[0].next_step


def test_a_choice_is_read_after_the_prompt_and_without_an_end() -> None:
    found = renderer().choice(ROW, "dull", 64)
    assert found.token_ids == ids("[CLS] the film was dull")
    assert found.labels == (*[NO_LABEL] * 4, *ids("dull"))


def test_a_batch_pads_labels_with_none_and_counts_no_padding() -> None:
    rows = [renderer().row(ROW, 64), renderer().row(Exchange("film", "cold"), 64)]
    (batch,) = evaluation_batches(as_split(rows), 4, Padding(3))  # the end token pads, as GPT-2 has it
    short = batch.row_ids.index(1)
    assert batch.inputs["attention_mask"][short].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert batch.labels[short].tolist() == [NO_LABEL, NO_LABEL, *ids("cold [SEP]"), *[NO_LABEL] * 3]
    assert batch.labels.shape == batch.inputs["input_ids"].shape
    assert batch.tokens == 11
