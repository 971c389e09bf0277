"""Exchanges as token ids: where the prompt ends, what is learned, and what is cut.

Prompt and completion are tokenised apart, so that the ids of a prompt are the same in training, when a choice is
scored and when an answer is generated after it. Tokenised together, a token could span the boundary (`:` and ` A` as
one): the model would then be trained on a prompt that it is never given. For the same reason a chat is cut at the turns
of its template and every piece is tokenised alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.domain.errors import Problem, UserError
from autopeft.evaluate.data.batches import NO_LABEL
from autopeft.evaluate.data.table import Exchange, Message


@dataclass(frozen=True)
class Rendered:
    """One row as the model gets it."""

    token_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """`NO_LABEL`, or the token's id where it is learned."""
    cut_prompt: bool
    cut_completion: bool


@dataclass(frozen=True)
class _Pieces:
    start: tuple[int, ...]
    """Special tokens that every text begins with."""
    context: tuple[int, ...]
    context_labels: tuple[int, ...]
    final: tuple[int, ...]
    """What the last answer consists of, its end token included."""


class Renderer:
    """Token ids for one tokenizer."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        """`stop_ids` are the tokens that end an answer, the tokenizer's own first."""
        self._tokenizer = tokenizer
        self._stops = frozenset(stop_ids)
        self._end = stop_ids[0]
        self._start = _start_tokens(tokenizer)

    def row(self, exchange: Exchange, limit: int) -> Rendered:
        """Prompt and completion, or a whole chat, in at most `limit` tokens.

        The beginning of the prompt is cut first, down to its last token, then the end of the completion.
        """
        return self._fitted(self._pieces(exchange), limit)

    def choice(self, exchange: Exchange, choice: str, limit: int) -> Rendered:
        """The prompt with one of its choices, without an end token, which says nothing about the choice."""
        context = self._ids(exchange.prompt)
        pieces = _Pieces(self._start, context, (NO_LABEL,) * len(context), self._ids(choice))
        return self._fitted(pieces, limit)

    def prompt(self, exchange: Exchange, limit: int) -> tuple[int, ...]:
        """What an answer is generated after: everything before the (last) completion, cut at the beginning."""
        pieces = self._pieces(exchange)
        room = max(1, limit - len(pieces.start))
        return (*pieces.start, *pieces.context[-room:])

    def _pieces(self, exchange: Exchange) -> _Pieces:
        if exchange.messages:
            return self._chat(exchange.messages)
        context = self._ids(exchange.prompt)
        return _Pieces(self._start, context, (NO_LABEL,) * len(context), self._ended(self._ids(exchange.completion)))

    def _chat(self, messages: Sequence[Message]) -> _Pieces:
        """A chat by the tokenizer's template, which brings its own special tokens.

        Raises:
            ValueError: where the template writes a chat's beginning otherwise when the chat goes on.
        """
        context: list[int] = []
        labels: list[int] = []
        final: tuple[int, ...] = ()
        done = ""
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._template(messages[:index], answer_next=True) if index else ""
            after = self._template(messages[: index + 1], answer_next=False)
            if not (before.startswith(done) and after.startswith(before)) or len(after) == len(before):
                raise ValueError("the chat template does not write the turns of a chat one after another")
            context += [*final, *(asked := self._ids(before[len(done) :]))]
            labels += [*final, *[NO_LABEL] * len(asked)]
            final = self._ids(after[len(before) :])
            done = after
        return _Pieces((), tuple(context), tuple(labels), self._ended(final))

    def _template(self, messages: Sequence[Message], answer_next: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next))

    def _ids(self, text: str) -> tuple[int, ...]:
        # verbose: a text longer than the model takes is cut here and needs no warning of the tokenizer's.
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else ()

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids if self._stops & set(ids) else (*ids, self._end)

    @staticmethod
    def _fitted(pieces: _Pieces, limit: int) -> Rendered:
        least = min(1, len(pieces.context))
        final = pieces.final[: max(1, limit - len(pieces.start) - least)]
        room = max(0, limit - len(pieces.start) - len(final))
        context = pieces.context[len(pieces.context) - min(room, len(pieces.context)) :]
        labels = pieces.context_labels[len(pieces.context) - len(context) :]
        return Rendered(
            (*pieces.start, *context, *final),
            (*[NO_LABEL] * len(pieces.start), *labels, *final),
            cut_prompt=len(context) < len(pieces.context),
            cut_completion=len(final) < len(pieces.final),
        )


def check_template(tokenizer: Any, chat: bool) -> None:
    """Raises UserError where chats are to be rendered and the tokenizer has no template for them."""
    if chat and not getattr(tokenizer, "chat_template", None):
        raise UserError(
            Problem(
                "data.messages",
                "the rows are chats, and the model's tokenizer has no chat template",
                "a model that was made for chats",
                "Choose such a model, put a chat_template into its tokenizer_config.json, or write the rows as prompt "
                "and completion.",
            )
        )


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's, and those of the model's generation settings.

    Raises:
        UserError: where there is none.
    """
    settings = getattr(model, "generation_config", None)
    more = getattr(settings, "eos_token_id", None)
    listed = more if isinstance(more, list | tuple) else [more]
    own = model.config.get_text_config().eos_token_id
    found = [tokenizer.eos_token_id, *listed, *(own if isinstance(own, list | tuple) else [own])]
    known = tuple(dict.fromkeys(one for one in found if isinstance(one, int)))
    if not known:
        raise UserError(
            Problem(
                "model",
                "neither the tokenizer nor the model names an end-of-text token, so no answer could end",
                "",
                "Set eos_token in its tokenizer_config.json.",
            )
        )
    return known


def _start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Special tokens that the tokenizer puts before every text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    start = []
    for token, special in zip(found["input_ids"], found["special_tokens_mask"], strict=True):
        if not special:
            break
        start.append(token)
    return tuple(start)
