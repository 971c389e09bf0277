"""The model card of an exported point: README.md with the front matter that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from autopeft.domain.measurements import PeakMemory
from autopeft.domain.objective import Unit
from autopeft.domain.results import RunResults, ScoredTrial


def write_card(results: RunResults, scored: ScoredTrial, label: str, base_model: str) -> str:
    """The card's text: front matter, how to load the adapter, its numbers, and what they rest on.

    Args:
        results: Of the run that the point is from.
        scored: The point; a completed trial.
        label: Why it was chosen, for example `knee`.
        base_model: Hub id or path of the base model, as the adapter's config names it.
    """
    record, trial = results.record, scored.trial
    sections = [
        f"---\n{_front_matter(results, scored, label, base_model)}\n---",
        f"# {record.name}: {label}",
        f"A PEFT adapter for `{base_model}`, trained on {_data_name(results)}. It is trial {trial.number} of the "
        f"search `{record.name}`, exported as *{label}*.",
        "## Load it",
        _where_to_run(base_model),
        _snippet(results, scored, base_model),
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


def _front_matter(results: RunResults, scored: ScoredTrial, label: str, base_model: str) -> str:
    record, trial = results.record, scored.trial
    kind = record.task.kind
    task = "text-classification"
    measured = trial.measurements
    splits = {"validation": measured.quality if measured else {}, "test": trial.test_quality or {}}
    scores = [
        EvalResult(
            task_type=task,
            task_name="Regression on text" if kind == "regression" else "Text classification",
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
        library_name="peft",
        pipeline_tag=task,
        tags=["autopeft", "peft", *sorted({insertion.method for insertion in trial.candidate.insertions}), kind],
        metrics=list(record.task.metrics),
        model_name=f"{record.name}-{label}" if scores else None,
        eval_results=scores or None,
    )
    return str(data.to_yaml()).strip()


def _snippet(results: RunResults, scored: ScoredTrial, base_model: str) -> str:
    spec, task = results.record.spec, results.record.task
    options = [f"num_labels={max(1, len(task.labels))}", "ignore_mismatched_sizes=True"]
    loading = []
    if spec.model.revision is not None and base_model == spec.model.source:
        loading.append(f"revision={spec.model.revision!r}")
    if spec.model.trust_remote_code:
        loading.append("trust_remote_code=True")
    if spec.model.dtype != "auto":
        options.append(f"dtype={spec.model.dtype!r}")
    tail = "".join(f", {option}" for option in loading)
    texts = '"A text.", "Its pair."' if task.pairs else '"A text."'
    logits = f"model(**tokenizer({texts}, return_tensors='pt')).logits"
    answer = f"{list(task.labels)!r}[int({logits}.argmax())]" if task.labels else f"float({logits})"
    # As it was measured: a float32 head on half-precision weights, and the arithmetic of the trial.
    weights, _, arithmetic = (scored.trial.measurements.dtype if scored.trial.measurements else "").partition(", ")
    half, autocast = weights in ("bfloat16", "float16"), arithmetic.removesuffix(" autocast")
    heads = [f"base.get_submodule({path!r}).float()" for path in results.record.layout.head_paths if half]
    show = [f"print({answer})"]
    if autocast:
        show = [f"with torch.autocast(base.device.type, dtype=torch.{autocast}):", f"    {show[0]}"]
    return "\n".join(
        (
            "```python",
            *(["import torch"] if autocast else []),
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            f"tokenizer = AutoTokenizer.from_pretrained({base_model!r}{tail})",
            f"base = AutoModelForSequenceClassification.from_pretrained({base_model!r}, {', '.join(options)}{tail})",
            *heads,
            'model = PeftModel.from_pretrained(base, ".").eval()',
            *show,
            "```",
        )
    )


def _where_to_run(base_model: str) -> str:
    path = Path(base_model)
    if path.is_dir() and not path.is_absolute():
        return (
            f"Run this in the folder of this file, with the full path of `{base_model}`, which is written here as the "
            "search was given it:"
        )
    return "Run this in the folder of this file:"


def _numbers(results: RunResults, scored: ScoredTrial) -> list[tuple[str, str]]:
    trial, measured = scored.trial, scored.trial.measurements
    rows = [
        (f"{objective.name} (objective)", _value(value, objective.unit))
        for objective, value in zip(results.objectives, scored.values or (), strict=False)
    ]
    rows += [(f"validation {name}", f"{value:.4f}") for name, value in (measured.quality if measured else {}).items()]
    rows += [(f"test {name}", f"{value:.4f}") for name, value in (trial.test_quality or {}).items()]
    if measured is not None:
        rows += [("memory while training", _peak(measured.train_peak))]
        rows += [("memory while predicting", _peak(measured.infer_peak))]
        counts: Mapping[str, Any] = {
            "trainable parameters, head included": measured.trainable_parameters,
            "of these in the head": measured.head_parameters,
            "parameters of the model in all": measured.total_parameters,
        }
        rows += [(name, f"{count:,}") for name, count in counts.items() if count is not None]
        if measured.adapter_bytes is not None:
            rows += [("adapter file", _value(measured.adapter_bytes, Unit.BYTES))]
        if measured.train_s is not None:
            rows += [("training", f"{measured.train_s:.1f} s, {measured.steps} steps, on {measured.device or '?'}")]
        if measured.latency_s is not None:
            rows += [("prediction", f"{measured.latency_s * 1000:.2f} ms per row, in batches")]
    share = results.record.task.majority_share
    if share is not None:
        rows += [("guessing the most frequent class", f"{share:.4f}")]
    return rows


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
        f"- `{one.method}` in layers {', '.join(map(str, one.layers))}, modules {', '.join(one.modules)}: "
        + ", ".join(f"{name} {value}" for name, value in one.settings.items())
        for one in candidate.insertions
    ]
    return [*(lines or ["- the head alone"]), f"- learning rate {candidate.learning_rate:g}"]


def _provenance(results: RunResults) -> list[tuple[str, str]]:
    record = results.record
    rows = ", ".join(f"{split} {count:,}" for split, count in record.task.rows.items())
    return [
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
