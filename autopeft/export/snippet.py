"""The lines of Python that load an exported adapter and predict with it."""

from __future__ import annotations

from pathlib import Path

from autopeft.domain.layout import TaskName
from autopeft.domain.results import RunResults, ScoredTrial

_CLASSES = {
    TaskName.SEQUENCE_CLASSIFICATION: "AutoModelForSequenceClassification",
    TaskName.CAUSAL_LM: "AutoModelForCausalLM",
}


_FLOAT32_NORMS = (
    "for part in base.modules():  # norms compute in float32, as in the search",
    '    if type(part).__name__.endswith("Norm"):',
    "        part.float()",
)


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
    named, imported = ", ".join([repr(base_model), *loading]), [automatic, "AutoTokenizer"]
    bits = _bits(results, named) if spec.model.load_in is not None else []
    if bits:
        options += ['device_map={"": 0}', "quantization_config=bits"]
        imported += ["BitsAndBytesConfig"] if classifies else ["AutoConfig", "BitsAndBytesConfig"]
    # As it was measured: a float32 head on half-precision weights, and the arithmetic of the trial.
    weights, _, arithmetic = (scored.trial.measurements.dtype if scored.trial.measurements else "").partition(", ")
    half, autocast = bits or weights in ("bfloat16", "float16"), arithmetic.removesuffix(" autocast")
    whole = list(_FLOAT32_NORMS) if bits else []
    whole += [f"base.get_submodule({path!r}).float()" for path in results.record.layout.head_paths if half]
    place = ".to(base.device)" if bits else ""
    shown = _classified(results, place) if classifies else _completed(results, place)
    if autocast:
        shown = [f"with torch.autocast(base.device.type, dtype=torch.{autocast}):", *(f"    {line}" for line in shown)]
    load = 'PeftModel.from_pretrained(base, ".").eval()' if plain_peft else 'autopeft.load_adapter(base, ".")'
    return "\n".join(
        (
            "```python",
            *(["import torch"] if autocast or bits else []),
            "from peft import PeftModel" if plain_peft else "import autopeft",
            f"from transformers import {', '.join(sorted(imported))}",
            f"tokenizer = AutoTokenizer.from_pretrained({named})",
            *bits,
            f"base = {automatic}.from_pretrained({', '.join([repr(base_model), *options, *loading])})",
            *whole,
            f"model = {load}",
            *shown,
            "```",
        )
    )


def whole_snippet(results: RunResults) -> str:
    """The same for a folder that holds the whole model: transformers alone."""
    automatic = _CLASSES[results.record.task.name]
    classifies = results.record.task.name is TaskName.SEQUENCE_CLASSIFICATION
    return "\n".join(
        (
            "```python",
            f"from transformers import {automatic}, AutoTokenizer",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            f'model = {automatic}.from_pretrained(".").eval()',
            *(_classified(results, "") if classifies else _completed(results, "")),
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


def _bits(results: RunResults, named: str) -> list[str]:
    """Lines that make `bits`, the config with which the search loaded the base (`autopeft.evaluate.quantisation`)."""
    kept = [f"whole = {list(results.record.layout.head_paths)!r}"]
    if results.record.task.name is TaskName.CAUSAL_LM:
        # The model's own head stays whole, and only the model knows what it is called.
        kept = [
            'with torch.device("meta"):',
            f"    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({named}){_trust(results)})",
            "whole = [name for name, part in plain.named_modules() if part is plain.get_output_embeddings()]",
        ]
    if results.record.spec.model.load_in == "8bit":
        return [*kept, "bits = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)"]
    return [
        *kept,
        "bits = BitsAndBytesConfig(",
        '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,',
        "    bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=whole,",
        ")",
    ]


def _trust(results: RunResults) -> str:
    return ", trust_remote_code=True" if results.record.spec.model.trust_remote_code else ""


def _classified(results: RunResults, place: str) -> list[str]:
    task = results.record.task
    texts = '"A text.", "Its pair."' if task.pairs else '"A text."'
    logits = f"model(**tokenizer({texts}, return_tensors='pt'){place}).logits"
    answer = f"{list(task.labels)!r}[int({logits}.argmax())]" if task.labels else f"float({logits})"
    return [f"print({answer})"]


def _completed(results: RunResults, place: str) -> list[str]:
    task, separator = results.record.task, results.record.spec.data.separator
    if task.chat:
        said = []
        asked = (
            'tokenizer.apply_chat_template([{"role": "user", "content": "A question."}], '
            'add_generation_prompt=True, return_tensors="pt", return_dict=True)'
        )
    else:
        note = f"# As in training, {separator!r} ends a prompt; leave it out where white space is there already."
        said = [note] if separator else []
        text = '"A prompt."' + (f" + {separator!r}" if separator else "")
        asked = f'tokenizer({text}, return_tensors="pt")'
    return [
        *said,
        f"inputs = {asked}{place}",
        "found = model.generate(**inputs, max_new_tokens=32, do_sample=False)",
        'print(tokenizer.decode(found[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
