"""Prompts, choices and chats are found by their columns, and every mistake in them is named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autopeft.domain.errors import UserError
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data.load import DataSet, load_data
from tests.unit.causal_models import opinions, write_lines

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
PLAIN = [{"prompt": f"what is {i}?", "completion": f"it is {i}"} for i in range(5)]
CHOICES = [{"prompt": f"pick {i}", "choices": ["yes", "no", "maybe"], "answer": i % 3} for i in range(5)]


def loaded(folder: Path, rows: list[dict[str, Any]], **spec: Any) -> DataSet:
    path = str(write_lines(folder / "rows.jsonl", rows))
    return load_data(DataSpec.model_validate({"train": path, "validation": path, **spec}), seed=0)


def mistakes(folder: Path, rows: list[dict[str, Any]], **spec: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        loaded(folder, rows, **spec)
    return [f"{problem.where.rpartition('/')[2]}: {problem.found}" for problem in caught.value.problems]


def rows_of(data: DataSet) -> Any:
    return data.splits["validation"].rows  # type: ignore[union-attr]


def test_prompts_without_labels_are_for_a_language_model_and_it_is_said(tmp_path: Path) -> None:
    data = loaded(tmp_path, PLAIN)
    assert (data.task.kind, data.task.metric) == ("causal-lm", "validation_loss")
    assert data.task.metrics == ("validation_loss", "perplexity", "token_accuracy")
    assert "the task is causal-lm" in data.notices[0]
    assert rows_of(data)[1].completion == "it is 1"
    assert "the task is causal-lm" not in "".join(loaded(tmp_path, PLAIN, task="causal-lm").notices)


def test_a_label_makes_a_classification_of_it_unless_asked_otherwise(tmp_path: Path) -> None:
    rows = [{**row, "text": "t", "label": i % 2} for i, row in enumerate(PLAIN)]
    assert loaded(tmp_path, rows).task.kind == "classification"
    assert loaded(tmp_path, rows, task="causal-lm").task.kind == "causal-lm"


def test_columns_have_any_name(tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "answer": row["completion"]} for row in PLAIN]
    data = loaded(tmp_path, rows, prompt="question", completion="answer")
    assert [row.completion for row in rows_of(data)] == [row["completion"] for row in PLAIN]
    assert data.task.choices == 0


def test_a_separator_stands_only_where_nothing_parts_prompt_and_completion(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": c} for p, c in (("a", "b"), ("a\n", "b"), ("a", " b"), ("a ", "b"))]
    assert [row.prompt for row in rows_of(loaded(tmp_path, rows))] == ["a\n", "a\n", "a", "a "]
    assert rows_of(loaded(tmp_path, rows, separator=" ->"))[0].prompt == "a ->"


def test_an_answer_is_the_index_or_the_text_of_a_choice(tmp_path: Path) -> None:
    by_text = [{**row, "answer": row["choices"][row["answer"]]} for row in CHOICES]
    as_text = [{**row, "answer": str(row["answer"]), "choices": json.dumps(row["choices"])} for row in CHOICES]
    expected = [(row["answer"], row["choices"][row["answer"]]) for row in CHOICES]
    for rows in (CHOICES, by_text, as_text):
        data = loaded(tmp_path, rows)
        assert [(row.answer, row.completion) for row in rows_of(data)] == expected
        assert (data.task.metric, data.task.choices, data.task.majority_share) == ("choice_accuracy", 3, None)


def test_few_answers_that_end_all_completions_are_the_choices_of_every_row(tmp_path: Path) -> None:
    data = loaded(tmp_path, opinions(12, 0))
    row = rows_of(data)[0]
    assert row.choices == ("film is awful", "film is great")
    assert row.choices[row.answer] == row.completion
    assert data.task.metric == "choice_accuracy"
    share = sum(one.answer for one in rows_of(data)) / 12
    assert data.task.majority_share == pytest.approx(max(share, 1 - share))
    assert any("awful, great" in notice for notice in data.notices)


def test_answers_of_many_kinds_are_no_choices(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": f"it is {i}", "answer": str(i)} for i in range(12)]
    data = loaded(tmp_path, rows)
    assert data.task.choices == 0
    assert [row.answer_text for row in rows_of(data)] == [str(i) for i in range(12)]


def test_a_chat_ends_with_its_last_answer(tmp_path: Path) -> None:
    rows = [{"messages": [*CHAT, {"role": "user", "content": "bye"}]} for _ in range(4)]
    data = loaded(tmp_path, rows)
    assert data.task.chat
    assert [message.content for message in rows_of(data)[0].messages] == ["hello", "good day"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "p", "completion": " "}, "'completion' is empty"),
        ({"prompt": "p"}, "'completion' is empty"),
        ({"prompt": "", "completion": "c"}, "'prompt' is empty"),
        ({"prompt": ["p"], "completion": "c"}, "'prompt' is a list, not a text"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    assert f"rows.jsonl:3: {found}" in mistakes(tmp_path, [*PLAIN[:2], row, *PLAIN[2:]])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"answer": 3}, "'answer' is '3', which is none of the choices"),
        ({"answer": "perhaps"}, "'answer' is 'perhaps', which is none of the choices"),
        ({"answer": None}, "'answer' is empty"),
        ({"choices": ["yes"]}, "'choices' holds fewer than two choices"),
        ({"choices": ["yes", "yes"]}, "'choices' holds an empty choice or one twice"),
        ({"choices": "yes or no"}, "'choices' is a str, not a list"),
        ({"choices": None}, "'choices' is empty"),
    ],
)
def test_what_is_wrong_with_choices_is_named_by_its_line(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    rows = [dict(row) for row in CHOICES]
    rows[3] |= change
    assert f"rows.jsonl:4: {found}" in mistakes(tmp_path, rows)


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        (CHAT[:1], "has no turn of the assistant"),
        ("hello", "is a str, not a list"),
        ([], "is empty"),
        (None, "is empty"),
        ([{"role": "user"}], "has no role and content in message 1"),
        ([CHAT[0], {"role": "bot", "content": "x"}], "has the role 'bot' in message 2"),
        ([CHAT[0], {"role": "assistant", "content": " "}], "has an empty message 2"),
    ],
)
def test_what_is_wrong_with_a_chat_is_named_by_its_line(tmp_path: Path, messages: Any, found: str) -> None:
    rows = [{"messages": CHAT} for _ in range(4)] + [{"messages": messages}]
    assert any(one.startswith(f"rows.jsonl:5: 'messages' {found}") for one in mistakes(tmp_path, rows))


def test_missing_columns_are_named_with_a_guess(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, [{"question": "q", "response": "r"}] * 4, task="causal-lm")
    steps = {problem.found: problem.next_step for problem in caught.value.problems}
    assert steps["there is no column 'prompt'"] == "Did you mean 'question'? Name the column in data.prompt."
    assert "Did you mean 'response'?" in steps["there is no column 'completion'"]


def test_choices_need_an_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "yes", "choices": ["yes", "no"]}] * 4
    assert "rows.jsonl: there is no column 'answer'" in mistakes(tmp_path, rows)


def test_choices_beside_a_chat_are_refused(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "choices": ["a", "b"], "answer": 0}] * 4
    assert "rows.jsonl: 'choices' stands beside 'messages'" in mistakes(tmp_path, rows)


def test_splits_must_be_of_one_kind(tmp_path: Path) -> None:
    chats = str(write_lines(tmp_path / "chats.jsonl", [{"messages": CHAT}] * 4))
    found = mistakes(tmp_path, PLAIN, validation=chats)
    assert any(one.startswith("chats.jsonl: it holds messages and the training split prompts") for one in found)
    plain = str(write_lines(tmp_path / "plain.jsonl", PLAIN))
    found = mistakes(tmp_path, CHOICES, test=plain)
    assert any(one.startswith("plain.jsonl: it has choices and the validation") for one in found)


def test_a_metric_that_the_rows_cannot_give_is_refused(tmp_path: Path) -> None:
    assert mistakes(tmp_path, PLAIN, metric="choice_accuracy") == [
        "data.metric: 'choice_accuracy' does not fit a causal-lm task on these rows"
    ]
    assert mistakes(tmp_path, PLAIN, metric="f1")
    assert loaded(tmp_path, PLAIN, metric="exact_match").task.metrics[0] == "exact_match"


def test_the_fingerprint_is_of_what_counts(tmp_path: Path) -> None:
    first = loaded(tmp_path, PLAIN)
    assert loaded(tmp_path, [{**row, "more": 1} for row in PLAIN]).fingerprint == first.fingerprint
    assert loaded(tmp_path, PLAIN, separator="|").fingerprint != first.fingerprint
    assert loaded(tmp_path, PLAIN[::-1]).fingerprint != first.fingerprint


def test_a_sample_of_training_rows_keeps_their_order(tmp_path: Path) -> None:
    data = loaded(tmp_path, opinions(40, 1), max_train_rows=10)
    whole = loaded(tmp_path, opinions(40, 1)).splits["train"].rows  # type: ignore[union-attr]
    places = [whole.index(row) for row in data.splits["train"].rows]  # type: ignore[union-attr]
    assert len(places) == 10 == data.task.rows["train"]
    assert places == sorted(places)
