"""The model card of an exported point: README.md with the front matter that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from autopeft.domain.layout import TaskName
from autopeft.domain.measurements import PeakMemory
from autopeft.domain.objective import Unit
from autopeft.domain.repetition import believed
from autopeft.domain.results import RunResults, ScoredTrial
from autopeft.export.snippet import snippet, where_to_run, whole_snippet


@dataclass(frozen=True)
class Whole:
    """That the whole model is exported, and not the adapter."""

    difference: float
    """Largest difference of a logit to those of the adapter on the base, in float32."""


def write_card(
    results: RunResults,
    scored: ScoredTrial,
    label: str,
    base_model: str,
    plain_peft: bool = True,
    whole: Whole | None = None,
) -> str:
    """The card's text: front matter, how to load the adapter or the whole model, its numbers, and what they rest on.

    Args:
        results: Of the run that the point is from.
        scored: The point; a completed trial.
        label: Why it was chosen, for example `knee`.
        base_model: Hub id or path of the base model, as the adapter's config names it.
        plain_peft: Whether peft alone loads the adapter; else `autopeft.load_adapter` does.
        whole: Where transformers alone loads the folder, because it holds the whole model.
    """
    record, trial = results.record, scored.trial
    library = "transformers" if whole else "peft" if plain_peft else "autopeft"
    what = f"`{base_model}` with a PEFT adapter merged into it" if whole else f"A PEFT adapter for `{base_model}`"
    loading = [*_bits(results), where_to_run(base_model), snippet(results, scored, base_model, plain_peft)]
    sections = [
        f"---\n{_front_matter(results, scored, label, base_model, library)}\n---",
        f"# {record.name}: {label}",
        f"{what}, trained on {_data_name(results)}. It is trial {trial.number} of the "
        f"search `{record.name}`, exported as *{label}*.",
        "## Load it",
        *([where_to_run("."), whole_snippet(results), _merging(whole)] if whole else loading),
        "## Numbers",
        _table(("", "value"), _numbers(results, scored)),
        _honesty(results, scored),
        "## What was trained",
        "\n".join(_insertions(scored)),
        _table(("parameter", "value"), [(f"`{name}`", str(value)) for name, value in trial.parameters.items()]),
        f"Seed {trial.seed}. `recipe.yaml` holds the complete recipe; `autopeft train recipe.yaml --out DIR` makes the "
        "point again from scratch.",
        "## What it rests on",
        _table(("", ""), _provenance(results)),
    ]
    return "\n\n".join(sections) + "\n"


def _merging(whole: Whole) -> str:
    """What the numbers below are of, and how near to it this model is."""
    return (
        "The numbers below are those of the adapter on the base model, as it was measured. Here its update is in the "
        f"weights: in float32, on rows of random tokens, the logits differ by {whole.difference:.2g} at most."
    )


def _front_matter(results: RunResults, scored: ScoredTrial, label: str, base_model: str, library: str) -> str:
    record, trial = results.record, scored.trial
    kind = record.task.kind
    generates = record.task.name is TaskName.CAUSAL_LM
    task = "text-generation" if generates else "text-classification"
    spoken = "Text generation" if generates else "Regression on text" if kind == "regression" else "Text classification"
    measured = trial.measurements
    splits = {"validation": measured.quality if measured else {}, "test": trial.test_quality or {}}
    scores = [
        EvalResult(
            task_type=task,
            task_name=spoken,
            dataset_type=_data_name(results),
            dataset_name=_data_name(results),
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{split} {metric}",
            metric_value=value,
        )
        for split, found in splits.items()
        for metric, value in found.items()
    ]
    data = ModelCardData(
        base_model=base_model,
        library_name=library,
        base_model_relation="adapter" if library != "transformers" else "finetune",
        pipeline_tag=task,
        tags=["autopeft", "peft", *sorted({insertion.method for insertion in trial.candidate.insertions}), kind],
        metrics=list(record.task.metrics),
        model_name=f"{record.name}-{label}" if scores else None,
        eval_results=scores or None,
    )
    return str(data.to_yaml()).strip()


def _numbers(results: RunResults, scored: ScoredTrial) -> list[tuple[str, str]]:
    trial, measured = scored.trial, scored.trial.measurements
    quality = results.quality_objective()
    estimate = believed(results.objectives, results.trials).estimates.get(trial.number)
    rows = []
    for objective, value in zip(results.objectives, scored.values or (), strict=False):
        mean = ", posterior mean" if objective is quality and estimate is not None else ""
        rows.append((f"{objective.name} (objective{mean}{_foretold(objective.name)})", _value(value, objective.unit)))
    if quality is not None and estimate is not None:
        spread = "" if estimate.spread is None else f", standard deviation {estimate.spread:.4f}"
        times = f"{estimate.count} training{'s' if estimate.count != 1 else ''}"
        rows.append((f"{quality.name} observed in {times}", f"{_value(estimate.mean, quality.unit)}{spread}"))
    rows += [(f"validation {name}", f"{value:.4f}") for name, value in (measured.quality if measured else {}).items()]
    rows += [(f"test {name}", f"{value:.4f}") for name, value in (trial.test_quality or {}).items()]
    there = results.record.spec.predict_for
    if measured is not None:
        if measured.estimation_peak is not None:
            rows += [("memory in the estimation before the pruning", _peak(measured.estimation_peak))]
        rows += [("memory while training", _peak(measured.train_peak))]
        if measured.train_mean_bytes is not None:
            rows += [("mean of the steps' peaks", _value(measured.train_mean_bytes, Unit.BYTES))]
        if measured.foretold_peak is not None:
            rows += [("the same, predicted before it trained", _peak(measured.foretold_peak))]
        if measured.elsewhere_peak is not None and there is not None:
            rows += [(f"memory while training on {there}", f"{_peak(measured.elsewhere_peak)}, never measured")]
        rows += [("memory while predicting", _peak(measured.infer_peak))]
        counts: Mapping[str, Any] = {
            "trainable parameters, head included": measured.trainable_parameters,
            "of these in the head": measured.head_parameters,
            "parameters of the model in all": measured.total_parameters,
            "of these kept by the pruning": measured.kept_parameters,
        }
        rows += [(name, f"{count:,}") for name, count in counts.items() if count is not None]
        if measured.adapter_bytes is not None:
            rows += [("adapter file", _value(measured.adapter_bytes, Unit.BYTES))]
        if measured.train_s is not None:
            rows += [("training", f"{measured.train_s:.1f} s, {measured.steps} steps, on {measured.device or '?'}")]
        if measured.estimation_s is not None:
            rows += [("of it the estimation", f"{measured.estimation_s:.1f} s")]
        if measured.pruning_s is not None:
            copied = "" if measured.copied_bytes is None else f", {_value(measured.copied_bytes, Unit.BYTES)} copied"
            rows += [("pruning step", f"{measured.pruning_s:.2f} s{copied}")]
        if measured.latency_s is not None:
            rows += [("prediction", f"{measured.latency_s * 1000:.2f} ms per row, in batches")]
    share = results.record.task.majority_share
    if share is not None:
        rows += [("guessing the most frequent class", f"{share:.4f}")]
    return rows


def _foretold(name: str) -> str:
    return ", predicted" if name == "predicted_peak_bytes" else ""


def _bits(results: RunResults) -> list[str]:
    """What a person needs to load a base in few bits; nothing for an ordinary one."""
    kind = results.record.spec.model.load_in
    if kind is None:
        return []
    how = {"4bit": "4 bits (NF4 with double quantisation, bfloat16 arithmetic)", "8bit": "8 bits (LLM.int8())"}[kind]
    return [
        f"The base was trained on and measured with its frozen weights in {how}, and is loaded so here. That needs a "
        "GPU and bitsandbytes: `python -m pip install 'autopeft[quantised]'`."
    ]


def _honesty(results: RunResults, scored: ScoredTrial) -> str:
    count = sum(one.values is not None for one in results.trials)
    chosen = (
        f"This point was chosen among {count} trained configurations by their scores on the validation set, so its "
        "validation score is optimistic: it is the one to compare points with, not the one to expect."
    )
    if scored.trial.test_quality is None:
        return f"{chosen} No test set was scored for it."
    return f"{chosen} The test set was scored once, after the search had ended, and nothing was chosen by it."


def _insertions(scored: ScoredTrial) -> list[str]:
    candidate = scored.trial.candidate
    lines = [
        f"- `{one.method}` in layers {', '.join(map(str, one.layers))}"
        + (f", modules {', '.join(one.modules)}" if one.modules else "")
        + (": " if one.settings else "")
        + ", ".join(f"{name} {value}" for name, value in one.settings.items())
        for one in candidate.insertions
    ]
    for what, chosen, settings in candidate.treatments():
        lines.append(f"- {what} `{chosen}`: {', '.join(f'{key} {value}' for key, value in settings.items())}")
    return [*(lines or ["- the head alone"]), f"- learning rate {candidate.learning_rate:g}"]


def _provenance(results: RunResults) -> list[tuple[str, str]]:
    record = results.record
    rows = ", ".join(f"{split} {count:,}" for split, count in record.task.rows.items())
    bits = record.spec.model.load_in
    return [
        *([("frozen weights", f"in {bits.removesuffix('bit')} bits, by bitsandbytes")] if bits else []),
        ("data", _data_name(results)),
        ("rows", rows),
        ("data fingerprint", f"`{record.provenance.data_fingerprint}`"),
        ("model fingerprint", f"`{record.provenance.model_fingerprint}`"),
        ("machine", record.provenance.machine),
        *((name, version) for name, version in record.provenance.versions.items()),
    ]


def _data_name(results: RunResults) -> str:
    data = results.record.spec.data
    name = data.source or data.train or ""
    return f"{name} ({data.subset})" if data.subset else name


def _peak(peak: PeakMemory | None) -> str:
    return "not measured" if peak is None else f"{_value(peak.live_bytes, Unit.BYTES)} ({peak.source.value})"


def _value(value: float, unit: Unit) -> str:
    if unit is Unit.BYTES:
        return f"{value / 2**20:,.2f} MiB ({value:,.0f} bytes)"
    if unit is Unit.COUNT:
        return f"{value:,.0f}"
    return f"{value:.2f} s" if unit is Unit.SECONDS else f"{value:.4f}"


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    """A Markdown table; a bar in a cell would end it."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ("---", "---"))]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
