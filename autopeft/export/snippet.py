"""The lines of Python that load an exported adapter and predict with it."""

from __future__ import annotations

from pathlib import Path

from autopeft.domain.layout import TaskName
from autopeft.domain.results import RunResults, ScoredTrial

_CLASSES = {
    TaskName.SEQUENCE_CLASSIFICATION: "AutoModelForSequenceClassification",
    TaskName.CAUSAL_LM: "AutoModelForCausalLM",
}


def snippet(results: RunResults, scored: ScoredTrial, base_model: str, plain_peft: bool) -> str:
    """A block of Python, run in the adapter's folder; with peft alone where `plain_peft`."""
    spec, task = results.record.spec, results.record.task
    automatic = _CLASSES[task.name]
    classifies = task.name is TaskName.SEQUENCE_CLASSIFICATION
    options = [f"num_labels={max(1, len(task.labels))}", "ignore_mismatched_sizes=True"] if classifies else []
    loading = []
    if spec.model.revision is not None and base_model == spec.model.source:
        loading.append(f"revision={spec.model.revision!r}")
    if spec.model.trust_remote_code:
        loading.append("trust_remote_code=True")
    if spec.model.dtype != "auto":
        options.append(f"dtype={spec.model.dtype!r}")
    # As it was measured: a float32 head on half-precision weights, and the arithmetic of the trial.
    weights, _, arithmetic = (scored.trial.measurements.dtype if scored.trial.measurements else "").partition(", ")
    half, autocast = weights in ("bfloat16", "float16"), arithmetic.removesuffix(" autocast")
    heads = [f"base.get_submodule({path!r}).float()" for path in results.record.layout.head_paths if half]
    shown = _classified(results) if classifies else _completed(results)
    if autocast:
        shown = [f"with torch.autocast(base.device.type, dtype=torch.{autocast}):", *(f"    {line}" for line in shown)]
    load = 'PeftModel.from_pretrained(base, ".").eval()' if plain_peft else 'autopeft.load_adapter(base, ".")'
    return "\n".join(
        (
            "```python",
            *(["import torch"] if autocast else []),
            "from peft import PeftModel" if plain_peft else "import autopeft",
            f"from transformers import {automatic}, AutoTokenizer",
            f"tokenizer = AutoTokenizer.from_pretrained({', '.join([repr(base_model), *loading])})",
            f"base = {automatic}.from_pretrained({', '.join([repr(base_model), *options, *loading])})",
            *heads,
            f"model = {load}",
            *shown,
            "```",
        )
    )


def where_to_run(base_model: str) -> str:
    """In which folder the snippet works as it is written."""
    path = Path(base_model)
    if path.is_dir() and not path.is_absolute():
        return (
            f"Run this in the folder of this file, with the full path of `{base_model}`, which is written here as the "
            "search was given it:"
        )
    return "Run this in the folder of this file:"


def _classified(results: RunResults) -> list[str]:
    task = results.record.task
    texts = '"A text.", "Its pair."' if task.pairs else '"A text."'
    logits = f"model(**tokenizer({texts}, return_tensors='pt')).logits"
    answer = f"{list(task.labels)!r}[int({logits}.argmax())]" if task.labels else f"float({logits})"
    return [f"print({answer})"]


def _completed(results: RunResults) -> list[str]:
    asked = 'tokenizer("A prompt.", return_tensors="pt")'
    if results.record.task.chat:
        asked = (
            'tokenizer.apply_chat_template([{"role": "user", "content": "A question."}], '
            'add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        )
    return [
        f"inputs = {asked}",
        "found = model.generate(**inputs, max_new_tokens=32, do_sample=False)",
        'print(tokenizer.decode(found[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
