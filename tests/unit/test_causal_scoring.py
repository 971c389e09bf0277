"""Likelihoods, choices and generated answers agree with slow loops, whatever the padding and the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from autopeft.domain.results import TaskInfo
from autopeft.evaluate.data.batches import NO_LABEL, Batch, Padding, evaluation_batches
from autopeft.evaluate.data.table import Exchange, Exchanges
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.tracker import StorageTracker
from autopeft.evaluate.outcomes import NotFiniteError
from autopeft.evaluate.quality import likelihood_metrics
from autopeft.evaluate.tasks.answers import final_answer, matches
from autopeft.evaluate.tasks.causal_lm import CausalLM, CompletionExam, as_split
from autopeft.evaluate.tasks.generation import Decoding, generate, keeps_cache
from autopeft.evaluate.tasks.generation_reference import generate_plainly
from autopeft.evaluate.tasks.likelihood import likelihoods
from autopeft.evaluate.tasks.rendering import Renderer
from autopeft.evaluate.tasks.task import Limits
from autopeft.evaluate.untouched import Untouched
from tests.unit.causal_models import DECODERS, language_model, opinions, word_tokenizer
from tests.unit.test_own_mixes import mix_of

CPU, FLOAT = torch.device("cpu"), torch.float32
LIMITS = Limits(batch_size=4, max_tokens=32, max_positions=64, max_new_tokens=6, seed=0)
ROWS = tuple(
    Exchange(row["prompt"], row["completion"], (), ("great", "film is awful", "very cold dark scene and"), i % 3)
    for i, row in enumerate(opinions(10, 3))
)
METRICS = ("choice_accuracy", "exact_match", "validation_loss", "perplexity", "token_accuracy")


def exam_of(metric: str = "validation_loss", rows: tuple[Exchange, ...] = ROWS, **limits: Any) -> CompletionExam:
    info = TaskInfo(kind="causal-lm", metric=metric, metrics=METRICS, rows={}, choices=3)
    bounds = Limits(**{**vars(LIMITS), **limits})
    exam = CausalLM(info, {"test": Exchanges(rows)}, word_tokenizer(), Padding(0), (3,), bounds).exam("test")
    assert exam is not None
    return exam


def batches(rows: tuple[Exchange, ...] = ROWS) -> list[Batch]:
    renderer = Renderer(word_tokenizer(), (3,))
    return evaluation_batches(as_split([renderer.row(row, 32) for row in rows]), 4, Padding(0))


def slow_log_probabilities(model: Any, prompt: list[int], text: list[int]) -> list[float]:
    """log p of each token of the text after the prompt, one forward pass a token, nothing padded."""
    found = []
    for place, token in enumerate(text):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + text[:place]])).logits[0, -1].double()
        found.append(float(logits[token] - torch.logsumexp(logits, 0)))
    return found


def tokens_of(text: str) -> list[int]:
    return list(word_tokenizer()(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", DECODERS)
def test_the_loss_of_a_batch_is_that_of_its_rows_one_by_one(kind: str) -> None:
    model = language_model(kind)
    for batch in batches():
        expected = []
        for row in batch.row_ids:
            prompt, text = [2, *tokens_of(ROWS[row].prompt)], [*tokens_of(ROWS[row].completion), 3]
            expected += slow_log_probabilities(model, prompt, text)
        with torch.no_grad():
            loss = model(**batch.inputs, labels=batch.labels).loss
        assert float(loss) == pytest.approx(-math.fsum(expected) / len(expected), rel=1e-4)


def test_labels_of_prompt_and_padding_make_no_gradient() -> None:
    model, (batch, *_) = language_model("llama"), batches()
    loss = model(**batch.inputs, labels=batch.labels).loss
    (one,) = torch.autograd.grad(loss, [model.lm_head.weight])
    filled = {
        **batch.inputs,
        "input_ids": batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, 7),
    }
    (other,) = torch.autograd.grad(model(**filled, labels=batch.labels).loss, [model.lm_head.weight])
    torch.testing.assert_close(one, other)
    learned = batch.labels.masked_fill(batch.inputs["attention_mask"] == 0, NO_LABEL) != NO_LABEL
    assert learned.sum() == sum(len(tokens_of(ROWS[row].completion)) + 1 for row in batch.row_ids)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_validation_metrics_agree_with_a_loop_over_tokens(kind: str) -> None:
    model = language_model(kind)
    logs = [slow_log_probabilities(model, [2, *tokens_of(row.prompt)], [*tokens_of(row.completion), 3]) for row in ROWS]
    found = exam_of().score(model, CPU, FLOAT)
    flat = [one for row in logs for one in row]
    assert found.quality["validation_loss"] == pytest.approx(-math.fsum(flat) / len(flat), rel=1e-5)
    assert found.quality["perplexity"] == pytest.approx(math.exp(-math.fsum(flat) / len(flat)), rel=1e-4)
    rows = likelihoods(model, batches(), CPU, FLOAT)
    assert rows.log_probability.tolist() == pytest.approx([math.fsum(row) for row in logs], rel=1e-4)
    assert rows.tokens.tolist() == [len(row) for row in logs]


def test_the_choice_is_the_one_with_the_most_likely_tokens_on_average() -> None:
    model = language_model("llama")
    right, summed = [], []
    for row in ROWS:
        logs = [slow_log_probabilities(model, [2, *tokens_of(row.prompt)], tokens_of(one)) for one in row.choices]
        means = [math.fsum(one) / len(one) for one in logs]
        right.append(means.index(max(means)))
        summed.append([math.fsum(one) for one in logs].index(max(math.fsum(one) for one in logs)))
    rows = tuple(
        Exchange(row.prompt, row.completion, (), row.choices, best if i < 7 else (best + 1) % 3)
        for i, (row, best) in enumerate(zip(ROWS, right, strict=True))
    )
    assert exam_of(rows=rows).score(model, CPU, FLOAT).quality["choice_accuracy"] == pytest.approx(0.7)
    assert right != summed, "a sum instead of the mean would have said the same of these rows"


class ByHand(torch.nn.Module):
    """Says after every token that the next is `great` with p = 0.5, `is` with 0.4, and others with the rest."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        great, is_ = tokens_of("great is")
        p = torch.full((26,), 0.1 / 24)
        p[great], p[is_] = 0.5, 0.4
        logits = p.log().expand(*input_ids.shape, 26)
        return type("Output", (), {"logits": logits})()


def test_length_does_not_count_against_a_choice() -> None:
    # By hand: log 0.4 for `is` against (log 0.5 + log 0.4) / 2 for `great is`, which as a sum would lose.
    row = Exchange("film", "great is", (), ("is", "great is"), 1)
    info = TaskInfo(kind="causal-lm", metric="choice_accuracy", metrics=("choice_accuracy",), rows={}, choices=2)
    exam = CausalLM(info, {"test": Exchanges((row,))}, word_tokenizer(), Padding(0), (3,), LIMITS).exam("test")
    assert exam is not None
    found = exam.score(ByHand(), CPU, FLOAT)
    assert found.quality["choice_accuracy"] == 1.0
    assert found.predictions == ["great is"]


def wordless_prompts() -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(4, 26, (length,), generator=draw).tolist()) for length in (3, 9, 1, 6, 12)]


@pytest.mark.parametrize("kind", DECODERS)
def test_generating_for_many_prompts_is_generating_for_each(kind: str) -> None:
    model, prompts = language_model(kind), wordless_prompts()
    never = Decoding(0, (-1,), 8)
    with torch.no_grad():
        alone = [generate_plainly(model, [one], 0, (-1,), 8, CPU)[0] for one in prompts]
        together = generate_plainly(model, prompts, 0, (-1,), 8, CPU)
    assert keeps_cache(model)
    assert generate(model, prompts, never, CPU, FLOAT) == alone == together
    assert all(len(one) == 8 for one in alone)
    stop = alone[1][2]
    ended = generate(model, prompts, Decoding(0, (stop,), 8), CPU, FLOAT)
    assert ended == [one[: one.index(stop)] if stop in one else one for one in alone]
    assert ended[1] != alone[1]


@pytest.mark.parametrize("config", [LoraConfig, PromptTuningConfig])
def test_generating_with_an_adapter_is_generating_for_each(config: Any) -> None:
    arguments = {"target_modules": ["q_proj", "down_proj"]} if config is LoraConfig else {"num_virtual_tokens": 3}
    model = get_peft_model(language_model("llama"), config(task_type="CAUSAL_LM", **arguments)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    assert keeps_cache(model) == (config is LoraConfig)
    prompts = wordless_prompts()
    with torch.no_grad():
        alone = [generate_plainly(model, [one], 0, (-1,), 6, CPU)[0] for one in prompts]
    assert generate(model, prompts, Decoding(0, (-1,), 6), CPU, FLOAT) == alone


@pytest.mark.parametrize("kind", DECODERS)
def test_generating_with_our_own_methods_keeps_the_cache(kind: str) -> None:
    model = language_model(kind).requires_grad_(False)
    layout = inspect_layout(model)
    candidate = mix_of(("serial", "parallel", "prefix"), layout, layers=(0, 1))
    inserted = insert(Untouched(model), candidate, layout, 0)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in inserted.trainable():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    inserted.model.eval()
    prompts = wordless_prompts()
    with torch.no_grad():
        alone = [generate_plainly(model, [one], 0, (-1,), 6, CPU)[0] for one in prompts]
    assert keeps_cache(model)
    assert generate(model, prompts, Decoding(0, (-1,), 6), CPU, FLOAT) == alone


def test_a_likelihood_under_a_soft_prompt_is_of_the_row_s_own_tokens() -> None:
    model = get_peft_model(
        language_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    found = likelihoods(model, batches(), CPU, FLOAT)
    for row, exchange in enumerate(ROWS[:3]):
        prompt, text = [2, *tokens_of(exchange.prompt)], [*tokens_of(exchange.completion), 3]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + text])).logits[0].double().log_softmax(-1)
        places = range(3 + len(prompt) - 1, 3 + len(prompt) + len(text) - 1)
        expected = sum(float(logits[place, token]) for place, token in zip(places, text, strict=True))
        assert float(found.log_probability[row]) == pytest.approx(expected, rel=1e-4)


def test_exact_match_counts_the_answers_that_are_right() -> None:
    model, tokenizer = language_model("llama"), word_tokenizer()
    exam = exam_of("exact_match")
    said = exam.answers(model, CPU, FLOAT).texts
    for row, text in zip(ROWS, said, strict=True):
        prompt = [2, *tokens_of(row.prompt)]
        (answer,) = generate_plainly(model, [prompt], 0, (3,), 6, CPU)
        assert text == tokenizer.decode(list(answer), skip_special_tokens=True).strip()
    known = tuple(
        Exchange(row.prompt, text if i < 4 else "[UNK]") for i, (row, text) in enumerate(zip(ROWS, said, strict=True))
    )
    info = TaskInfo(kind="causal-lm", metric="exact_match", metrics=("exact_match",), rows={})
    again = CausalLM(info, {"test": Exchanges(known)}, tokenizer, Padding(0), (3,), LIMITS).exam("test")
    assert again is not None
    found = again.score(model, CPU, FLOAT)
    assert found.quality == {"exact_match": pytest.approx(sum(bool(text) for text in said[:4]) / 10)}
    assert found.predictions == said


@pytest.mark.parametrize(
    ("generated", "completion", "answer", "right"),
    [
        ("so 1+1\n#### 72", "2*36=72\n#### 72", None, True),
        ("#### $1,072.", "#### 1072", None, True),
        ("#### 72\nand more", "#### 72", None, True),
        ("72", "#### 72", None, False),
        ("#### 7", "#### 72", None, False),
        ("####", "#### 72", None, False),
        ("  The  Answer is B. ", "the answer is b", None, True),
        ("b", "the answer is b", "B", True),
        ("a", "the answer is b", "B", False),
        ("", "b", None, False),
    ],
)
def test_a_generated_answer_is_right(generated: str, completion: str, answer: str | None, right: bool) -> None:
    assert matches(generated, completion, answer) is right


def test_the_final_answer_of_a_solution_stands_behind_its_mark() -> None:
    assert final_answer("a\n#### 1,234 \nb", "#### 1") == "1234"
    assert final_answer("A  b.", "c") == "a b"


def test_metrics_that_no_token_stands_for_are_nan_and_a_huge_loss_is_not_infinite() -> None:
    assert all(math.isnan(one) for one in likelihood_metrics([0.0], [0], [0]).values())
    assert math.isfinite(likelihood_metrics([-1e5], [1], [0])["perplexity"])


def test_a_model_that_says_nan_is_found_out() -> None:
    model = language_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(NotFiniteError):
        likelihoods(model, batches(), CPU, FLOAT)
    with pytest.raises(NotFiniteError):
        generate(model, [(4, 5)], Decoding(0, (3,), 2), CPU, FLOAT)
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(NotFiniteError):
        generate(model, [(4, 5)], Decoding(0, (3,), 2), CPU, FLOAT)


def test_the_peak_is_of_the_phase_that_the_headline_metric_comes_from() -> None:
    model = language_model("llama")
    peaks = {}
    for metric in ("validation_loss", "choice_accuracy", "exact_match"):
        peak = exam_of(metric).peak(model, CPU, FLOAT)
        assert peak is not None
        peaks[metric] = peak.live_bytes
    assert len(set(peaks.values())) == 3
    longer = exam_of("exact_match", max_new_tokens=24).peak(model, CPU, FLOAT)
    assert longer is not None
    assert longer.live_bytes > peaks["exact_match"]  # the cache grows with the answer


def test_the_tracker_counts_the_logits_of_a_language_model() -> None:
    model = language_model("llama")
    batch = max(batches(), key=lambda one: one.inputs["input_ids"].numel())
    logits_bytes = batch.inputs["input_ids"].numel() * model.config.vocab_size * 4
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    tracker = StorageTracker()
    tracker.register(model.parameters())
    with tracker:
        model(**batch.inputs, labels=batch.labels).loss.backward()
    assert tracker.peak_bytes > weights + logits_bytes
