"""Causal language modelling: prompts and completions, choices, chats."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.measurements import PeakMemory
from autopeft.domain.results import TaskInfo
from autopeft.evaluate.arithmetic import batch_size, moved
from autopeft.evaluate.data.batches import Batch, Padding, TokenisedSplit, evaluation_batches, train_batches
from autopeft.evaluate.data.prompts import CHOICE, GENERATED
from autopeft.evaluate.data.table import Exchange, Exchanges
from autopeft.evaluate.memory.peaks import inference_meter
from autopeft.evaluate.quality import choice_accuracy, likelihood_metrics
from autopeft.evaluate.tasks.answers import matches
from autopeft.evaluate.tasks.generation import Decoding, generate
from autopeft.evaluate.tasks.likelihood import Likelihoods, forward_scores, likelihoods
from autopeft.evaluate.tasks.rendering import Rendered, Renderer, check_template
from autopeft.evaluate.tasks.task import Limits, Scored


@dataclass(frozen=True)
class Answers:
    """Generated texts of a split, in its order."""

    texts: list[str]
    seconds: float
    row_seconds: tuple[float, ...]


class CompletionExam:
    """A split of exchanges: a pass over the completions, one over the choices, and generation where it is asked for."""

    def __init__(
        self,
        info: TaskInfo,
        rows: Sequence[Exchange],
        renderer: Renderer,
        decoding: Decoding,
        padding: Padding,
        limits: Limits,
        tokenizer: Any,
    ) -> None:
        self.info = info
        self._rows = rows
        self._decoding = decoding
        self._tokenizer = tokenizer
        rendered = [renderer.row(row, limits.max_tokens) for row in rows]
        self.batches = evaluation_batches(as_split(rendered), limits.batch_size, padding)
        self._choice_batches: list[Batch] = []
        if CHOICE in info.metrics:
            choices = [renderer.choice(row, choice, limits.max_tokens) for row in rows for choice in row.choices]
            self._choice_batches = evaluation_batches(as_split(choices), limits.batch_size, padding)
        self._prompts: list[list[tuple[int, tuple[int, ...]]]] = []
        if GENERATED in info.metrics:
            self._prompts = _prompt_batches(rows, renderer, decoding, limits)

    def score(self, model: Any, device: torch.device, dtype: torch.dtype) -> Scored:
        """See `Exam.score`."""
        started = time.perf_counter()
        rows = likelihoods(model, self.batches, device, dtype)
        quality = likelihood_metrics(rows.log_probability, rows.tokens, rows.correct)
        row_seconds = {"": rows.row_seconds}
        said: list[Any] = [-float(value) for value in rows.per_token]
        if self._choice_batches:
            found = likelihoods(model, self._choice_batches, device, dtype)
            chosen = self._chosen(found)
            quality[CHOICE] = choice_accuracy(chosen, [row.answer for row in self._rows])
            row_seconds[CHOICE] = tuple(
                seconds * len(found.tokens) / len(self._rows) for seconds in found.row_seconds
            )  # of a row with all of its choices
            said = [row.choices[index] for row, index in zip(self._rows, chosen, strict=True)]
        if self._prompts:
            answers = self.answers(model, device, dtype)
            right = [
                matches(text, self._completion(row), row.answer_text)
                for text, row in zip(answers.texts, self._rows, strict=True)
            ]
            quality[GENERATED] = sum(right) / len(right)
            row_seconds[GENERATED] = answers.row_seconds
            said = answers.texts
        phase = row_seconds.get(self.info.metric, row_seconds[""])
        return Scored(
            {name: quality.get(name, math.nan) for name in self.info.metrics},
            said,
            time.perf_counter() - started,
            statistics.median(phase),
        )

    def peak(self, model: Any, device: torch.device, dtype: torch.dtype) -> PeakMemory | None:
        """Of generating the answers to the longest prompts where the headline metric is exact_match, cache included;
        else of scoring the largest batch of choices (choice_accuracy) or of completions (any other metric)."""
        model.eval()
        meter = inference_meter(device, model)
        if self.info.metric == GENERATED:
            longest = max(self._prompts, key=lambda batch: len(batch) * len(batch[-1][1]))
            with meter.step(0):
                generate(model, [prompt for _, prompt in longest], self._decoding, device, dtype)
            return meter.peak()
        batches = self._choice_batches if self.info.metric == CHOICE else self.batches
        largest = max(batches, key=batch_size)
        with meter.step(0):
            meter.add(moved(largest, device).values())
            forward_scores(model, largest, device, dtype)
        return meter.peak()

    def answers(self, model: Any, device: torch.device, dtype: torch.dtype) -> Answers:
        """Generate an answer to every row."""
        texts, row_seconds = [""] * len(self._rows), []
        started = time.perf_counter()
        for batch in self._prompts:
            began = time.perf_counter()
            found = generate(model, [prompt for _, prompt in batch], self._decoding, device, dtype)
            for (row, _), answer in zip(batch, found, strict=True):
                texts[row] = str(self._tokenizer.decode(list(answer), skip_special_tokens=True)).strip()
            row_seconds.append((time.perf_counter() - began) / len(batch))
        return Answers(texts, time.perf_counter() - started, tuple(row_seconds))

    def _chosen(self, found: Likelihoods) -> list[int]:
        """Index of the choice of each row whose tokens are on average most likely; of equals, the first."""
        scores, start, chosen = found.per_token, 0, []
        for row in self._rows:
            chosen.append(int(scores[start : start + len(row.choices)].argmax()))
            start += len(row.choices)
        return chosen

    @staticmethod
    def _completion(row: Exchange) -> str:
        return row.messages[-1].content if row.messages else row.completion


class CausalLM:
    """Exchanges for a language model with its own head."""

    def __init__(
        self,
        info: TaskInfo,
        splits: Mapping[str, Exchanges],
        tokenizer: Any,
        padding: Padding,
        stop_ids: Sequence[int],
        limits: Limits,
    ) -> None:
        self.info = info
        self._splits = splits
        self._tokenizer = tokenizer
        self._padding = padding
        self._limits = limits
        self._renderer = Renderer(tokenizer, stop_ids)
        self._decoding = Decoding(padding.id, frozenset(stop_ids), limits.max_new_tokens)

    def train_batches(self) -> list[Batch]:
        """See `Task.train_batches`; the labels are `[rows, padded]`, -100 everywhere but on what is to be written."""
        rows = [self._renderer.row(row, self._limits.max_tokens) for row in self._splits["train"].rows]
        return train_batches(as_split(rows), self._limits.batch_size, self._limits.seed, self._padding)

    def exam(self, split: str) -> CompletionExam | None:
        """See `Task.exam`."""
        if split not in self._splits:
            return None
        rows = self._splits[split].rows
        return CompletionExam(
            self.info, rows, self._renderer, self._decoding, self._padding, self._limits, self._tokenizer
        )

    def notices(self) -> list[str]:
        """How many prompts and completions are cut; see `Task.notices`."""
        check_template(self._tokenizer, self.info.chat)
        self._check_room()
        limit = self._limits.max_tokens
        found, problems = [], []
        for name, split in self._splits.items():
            rows: list[Rendered] = []
            for number, row in enumerate(split.rows, start=1):
                try:
                    rows.append(self._renderer.row(row, limit))
                except Exception as error:  # a template raises whatever its author chose
                    if not row.messages:
                        raise
                    text = str(error).strip().splitlines()[:1] or [type(error).__name__]
                    step = "Change the row to what the model's template takes."
                    problems.append(
                        Problem(f"{name} row {number}", f"its messages cannot be rendered: {text[0]}", "", step)
                    )
            prompts, completions = sum(row.cut_prompt for row in rows), sum(row.cut_completion for row in rows)
            if completions:
                found.append(
                    f"{completions} of {len(rows)} {name} completions are cut at the end, because rows are longer than "
                    f"{limit} tokens; raise data.max_tokens."
                )
            if prompts:
                found.append(
                    f"{prompts} of {len(rows)} {name} prompts are cut at the beginning, to {limit} tokens a row."
                )
        if problems:
            raise UserError(*problems[:10])
        return found

    def _check_room(self) -> None:
        positions, new = self._limits.max_positions, self._limits.max_new_tokens
        if GENERATED in self.info.metrics and positions is not None and new >= positions:
            raise UserError(
                Problem(
                    "data.max_new_tokens",
                    f"{new} tokens leave no room for a prompt: the model takes {positions} in all",
                    f"1 to {positions - 1}",
                    "Lower it.",
                )
            )


def as_split(rows: Sequence[Rendered]) -> TokenisedSplit:
    """Rendered rows as batches are cut from them."""
    return TokenisedSplit(tuple(row.token_ids for row in rows), None, tuple(row.labels for row in rows))


def _prompt_batches(
    rows: Sequence[Exchange], renderer: Renderer, decoding: Decoding, limits: Limits
) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Row and prompt, in batches of prompts of similar length; a prompt leaves room for its answer."""
    room = limits.max_tokens
    if limits.max_positions is not None:
        room = min(room, limits.max_positions - decoding.max_new_tokens)
    prompts = sorted(((row, renderer.prompt(one, room)) for row, one in enumerate(rows)), key=lambda one: len(one[1]))
    return [prompts[start : start + limits.batch_size] for start in range(0, len(prompts), limits.batch_size)]
