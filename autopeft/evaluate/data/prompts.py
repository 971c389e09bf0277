"""Rows for a language model: prompts with completions, choices, or chats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autopeft.domain.errors import Problem
from autopeft.domain.layout import TaskName
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data.columns import missing_column, text_column
from autopeft.evaluate.data.mistakes import Mistakes, check_rows
from autopeft.evaluate.data.table import Exchange, Exchanges, Message, Table

LIKELIHOODS = ("validation_loss", "perplexity", "token_accuracy")
"""Metrics that every data set has."""
CHOICE, GENERATED = "choice_accuracy", "exact_match"
MOST_SHARED_CHOICES = 10
"""Where the answers of all rows are at most so many, they are what every row chooses among."""
_ROLES = ("system", "user", "assistant", "tool")
_MEND = "Fill it in or take the row out."


@dataclass(frozen=True)
class PromptData:
    """The splits of a data set for a language model."""

    splits: dict[str, Exchanges]
    metric: str
    shared_choices: bool
    """Whether all rows choose among the same answers."""

    def task(self, splits: Mapping[str, Exchanges]) -> TaskInfo:
        """The task of these splits, which may hold a sample of the rows."""
        rows = splits["validation"].rows
        answers = Counter(row.answer for row in rows)
        choices = max(len(row.choices) for row in rows)
        generated = (GENERATED,) if self.metric == GENERATED else ()
        return TaskInfo(
            kind=TaskName.CAUSAL_LM,
            metric=self.metric,
            metrics=(*((CHOICE,) if choices else ()), *generated, *LIKELIHOODS),
            rows={name: len(split) for name, split in splits.items()},
            chat=bool(rows[0].messages),
            choices=choices,
            majority_share=max(answers.values()) / len(rows) if self.shared_choices else None,
        )


def holds_prompts(spec: DataSpec, table: Table) -> bool:
    """Whether the columns are those of prompts or chats."""
    names = table.names
    asked = spec.prompt in names and (spec.completion in names or {spec.choices, spec.answer} <= set(names))
    return asked or spec.messages in names


def read_prompts(
    spec: DataSpec, tables: Mapping[str, Table | None], mistakes: Mistakes, notices: list[str]
) -> PromptData:
    """Check the rows; what is wrong goes to `mistakes`."""
    splits: dict[str, Exchanges] = {}
    for name, table in tables.items():
        if table is None:
            continue
        rows = _chats(spec, table, mistakes) if spec.prompt not in table.names else None
        if rows is None:
            rows = _exchanges(spec, table, mistakes)
        check_rows(name, table.name, table.rows, mistakes)
        if rows is not None:
            splits[name] = Exchanges(rows)
    _check_alike(splits, tables, mistakes)
    shared = None
    if not len(mistakes):
        shared = _shared_choices(splits)
    if shared:
        answers, splits = shared
        notices.append(
            f"Every completion ends with its '{spec.answer}', one of {', '.join(answers)}; "
            "choice_accuracy lets the model choose among these."
        )
    chosen = "validation" in splits and all(row.choices for row in splits["validation"].rows)
    return PromptData(splits, _metric(spec, chosen, mistakes), shared is not None)


def _metric(spec: DataSpec, chosen: bool, mistakes: Mistakes) -> str:
    allowed = (*((CHOICE,) if chosen else ()), *LIKELIHOODS, GENERATED)
    if spec.metric == "auto":
        return allowed[0]
    if spec.metric not in allowed and not len(mistakes):
        step = "Leave it out."
        if spec.metric == CHOICE:
            step = f"Give the rows a column '{spec.choices}' and a column '{spec.answer}', or leave it out."
        found = f"'{spec.metric}' does not fit a causal-lm task on these rows"
        mistakes.add(Problem("data.metric", found, ", ".join(allowed), step))
    return spec.metric


def _exchanges(spec: DataSpec, table: Table, mistakes: Mistakes) -> tuple[Exchange, ...] | None:
    """Rows of prompts; None where a column is missing."""
    names = set(table.names)
    has_choices = spec.choices in names
    needed = {"prompt": spec.prompt, "completion": spec.completion}
    if has_choices:
        needed = {"prompt": spec.prompt, "answer": spec.answer}
    missing = [key for key, column in needed.items() if column not in names]
    for key in missing:
        mistakes.add(missing_column(table, key, needed[key], needed.values()))
    if missing:
        return None
    prompts = text_column(table, spec.prompt, mistakes, may_be_empty=False)
    completions = None
    if spec.completion in names and not (has_choices and spec.completion == spec.answer):
        completions = text_column(table, spec.completion, mistakes, may_be_empty=False)
    answered = spec.answer in names and spec.answer != spec.completion
    rows = []
    for row, prompt in enumerate(prompts):
        choices = _choices(spec, table, row, mistakes) if has_choices else ()
        given = table.columns[spec.answer][row] if answered or has_choices else None
        answer = _answer(spec, table, row, given, choices, mistakes) if choices else None
        completion = completions[row] if completions else choices[answer] if answer is not None else ""
        text = str(given).strip() if given is not None and not has_choices else None
        rows.append(Exchange(_joined(spec, prompt, completion), completion, (), choices, answer, text or None))
    return tuple(rows)


def _joined(spec: DataSpec, prompt: str, completion: str) -> str:
    """The prompt with the separator that it needs."""
    apart = prompt[-1:].isspace() or completion[:1].isspace()
    return prompt if apart else prompt + spec.separator


def _choices(spec: DataSpec, table: Table, row: int, mistakes: Mistakes) -> tuple[str, ...]:
    value = _unpacked(table.columns[spec.choices][row])
    if isinstance(value, list | tuple):
        texts = tuple(one.strip() if isinstance(one, str) else str(one) for one in value)
        if len(texts) >= 2 and all(texts) and len(set(texts)) == len(texts):
            return texts
        found = "holds fewer than two choices" if len(texts) < 2 else "holds an empty choice or one twice"
    else:
        found = "is empty" if value in (None, "") else f"is a {type(value).__name__}, not a list"
    problem = Problem(table.place(row), f"'{spec.choices}' {found}", "a list of at least two different texts", _MEND)
    mistakes.add_row(table.name, f"'{spec.choices}'", problem)
    return ()


def _answer(
    spec: DataSpec, table: Table, row: int, value: object, choices: tuple[str, ...], mistakes: Mistakes
) -> int | None:
    """Index of the right choice."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if text in choices:
        return choices.index(text)
    if not isinstance(value, bool) and text.isdecimal() and int(text) < len(choices):
        return int(text)
    found = f"'{spec.answer}' is {'empty' if value is None or not text else f'{text!r}, which is none of the choices'}"
    allowed = f"0 to {len(choices) - 1}, or one of {', '.join(choices)}"
    mistakes.add_row(table.name, f"'{spec.answer}'", Problem(table.place(row), found, allowed, "Correct it."))
    return None


def _chats(spec: DataSpec, table: Table, mistakes: Mistakes) -> tuple[Exchange, ...] | None:
    """Rows of messages; None where the column is missing."""
    if spec.messages not in table.names:
        return None
    if spec.choices in table.names:
        found = f"'{spec.choices}' stands beside '{spec.messages}'"
        step = f"Write the rows with '{spec.prompt}', or take the column out."
        mistakes.add(Problem(table.name, found, f"choices belong to rows with '{spec.prompt}'", step))
    return tuple(Exchange("", "", _messages(spec, table, row, mistakes)) for row in range(table.rows))


def _messages(spec: DataSpec, table: Table, row: int, mistakes: Mistakes) -> tuple[Message, ...]:
    value = _unpacked(table.columns[spec.messages][row])
    found = ""
    messages: list[Message] = []
    if not isinstance(value, list | tuple) or not value:
        found = "is empty" if not value else f"is a {type(value).__name__}, not a list"
    for number, turn in enumerate(value if not found and isinstance(value, list | tuple) else (), start=1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            found = f"has no role and content in message {number}"
        elif role not in _ROLES:
            found = f"has the role '{role}' in message {number}; there are {', '.join(_ROLES)}"
        elif not content.strip():
            found = f"has an empty message {number}"
        else:
            messages.append(Message(role, content))
        if found:
            break
    last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
    if not found and last < 0:
        found = "has no turn of the assistant, so there is nothing to learn"
    if not found:
        # What follows the last answer is asked of nobody.
        return tuple(messages[: last + 1])
    allowed = 'a list of {"role": …, "content": …} with an assistant turn'
    mistakes.add_row(
        table.name, f"'{spec.messages}'", Problem(table.place(row), f"'{spec.messages}' {found}", allowed, _MEND)
    )
    return ()


def _unpacked(value: object) -> object:
    """A list that a CSV file holds as JSON text; other values as they are."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _check_alike(splits: Mapping[str, Exchanges], tables: Mapping[str, Table | None], mistakes: Mistakes) -> None:
    """Splits that are scored hold the same kind of rows as the training split; validation and test have choices or not.

    Training rows need no choices, for they are trained on completions.
    """
    if len(mistakes) or "train" not in splits:
        return
    kinds = {name: bool(split.rows[0].messages) for name, split in splits.items()}
    scored = {name: bool(split.rows[0].choices) for name, split in splits.items() if name != "train"}
    for name, kind in kinds.items():
        table = tables[name]
        if table is not None and kind != kinds["train"]:
            found = "it holds messages and the training split prompts, or the other way round"
            mistakes.add(Problem(table.name, found, "the same columns", "Write both in one way."))
        elif table is not None and name == "test" and scored["test"] != scored.get("validation", scored["test"]):
            found = "it has choices and the validation split has none, or the other way round"
            mistakes.add(Problem(table.name, found, "the same columns", "Write both in one way."))


def _shared_choices(splits: Mapping[str, Exchanges]) -> tuple[list[str], dict[str, Exchanges]] | None:
    """Rows that choose among the few answers which all completions end with, where that is how they are."""
    rows = [row for split in splits.values() for row in split.rows]
    texts = sorted({row.answer_text for row in rows if row.answer_text})
    ends = all(row.answer_text and row.completion.rstrip().endswith(row.answer_text) for row in rows)
    if not ends or any(row.choices for row in rows) or not 2 <= len(texts) <= MOST_SHARED_CHOICES:
        return None

    def chosen(row: Exchange) -> Exchange:
        lead = row.completion.rstrip().removesuffix(row.answer_text or "")
        return replace(
            row,
            choices=tuple(lead + text for text in texts),
            answer=texts.index(row.answer_text or ""),
            answer_text=None,
        )

    return texts, {name: Exchanges(tuple(map(chosen, split.rows))) for name, split in splits.items()}
