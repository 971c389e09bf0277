"""Exported points: the folder, its files, and what happens to what was there before."""

import ast
import copy
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import UserError
from autopeft.domain.results import PICKS
from autopeft.evaluate.layout import head_paths
from autopeft.evaluate.quantisation import kept_whole, norms_in_float32, quantisation
from autopeft.export.best import export_best
from autopeft.export.points import export_point
from autopeft.export.recipe import Recipe
from tests.contract.run_samples import TASK, measurements_of, results_of, trial_of, write_artefact
from tests.unit.causal_models import language_model
from tests.unit.evaluate_models import classifier_of

FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "candidate.yaml",
    "recipe.yaml",
    "test_predictions.json",
}


@pytest.fixture
def results():
    return results_of()


@pytest.fixture
def artefact(tmp_path):
    return write_artefact(tmp_path / "artefacts" / "0001")


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_an_export_has_every_promised_file(results, artefact, tmp_path):
    out = tmp_path / "deep" / "out"
    assert export_point(results, results.front.members[1], artefact, out, "knee") == out
    assert names(out) == FILES
    for name in ("adapter_model.safetensors", "adapter_config.json", "test_predictions.json"):
        assert (out / name).read_bytes() == (artefact / name).read_bytes()
    assert names(out.parent) == {"out"}, "nothing temporary is left"


def test_a_tokenizer_comes_along_and_unknown_files_do_not(results, artefact, tmp_path):
    (artefact / "tokenizer.json").write_text("{}")
    (artefact / "optimizer.bin").write_text("x")
    out = export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    assert names(out) == FILES | {"tokenizer.json"}


def test_the_candidate_file_says_what_was_trained_and_measured(results, artefact, tmp_path):
    scored = results.front.members[1]
    out = export_point(results, scored, artefact, tmp_path / "out", "knee")
    found = yaml.safe_load((out / "candidate.yaml").read_text())
    assert Candidate.model_validate(found["candidate"]).digest == scored.trial.digest == found["digest"]
    assert found["parameters"] == scored.trial.parameters
    assert found["objectives"] == {"accuracy": 0.7, "train_peak_bytes": 1100.0}
    assert (found["trial"], found["pick"], found["test"]["accuracy"]) == (1, "knee", 0.69)
    assert found["measurements"] == json.loads(scored.trial.measurements.model_dump_json())


def test_the_recipe_file_is_the_trial_s(results, artefact, tmp_path):
    scored = results.front.members[1]
    out = export_point(results, scored, artefact, tmp_path / "out", "knee")
    assert Recipe.load(out / "recipe.yaml") == Recipe.of(results.record, scored.trial)


def test_the_card_loads_and_says_the_numbers(results, artefact, tmp_path):
    (artefact / "adapter_config.json").write_text('{"base_model_name_or_path": "some-org/some-model"}')
    out = export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "some-org/some-model"
    assert card.data.library_name == "peft"
    assert {"autopeft", "lora"} <= set(card.data.tags)
    scores = {(one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert scores[("validation", "accuracy")] == 0.7
    assert scores[("test", "accuracy")] == 0.69
    text = card.text
    assert "1,100 bytes) (tracked)" in text, "memory comes with its source"
    assert "128" in text
    assert "0123456789abcdef" in text, "the data's fingerprint"
    assert "0.21.2" in text, "versions"
    assert re.search(r"among 4 trained configurations by their scores on the validation set", text)
    assert "The test set was scored once" in text


def test_the_card_of_a_pruned_point_keeps_the_phases_apart(artefact, tmp_path):
    names = ("estimation_peak", "estimation_s", "pruning_s", "copied_bytes", "kept_parameters", "train_mean_bytes")
    pruned = trial_of(0, peak=1000)
    plain = trial_of(0, measurements=pruned.measurements.model_copy(update=dict.fromkeys(names)))
    texts = []
    for number, one in enumerate((plain, pruned)):
        results = results_of([one])
        out = export_point(results, results.front.members[0], artefact, tmp_path / f"out-{number}", "knee")
        texts.append((out / "README.md").read_text())
    rows = {
        "memory in the estimation before the pruning": "1,200 bytes",
        "mean of the steps' peaks": "900 bytes",
        "of these kept by the pruning": "900",
        "of it the estimation": "0.6 s",
        "pruning step": "0.20 s",
    }
    for name, value in rows.items():
        assert re.search(rf"\| {name} \|[^|]*{value}", texts[1]), name
    assert re.search(r"\| pruning step \|[^|]*4,096 bytes\) copied", texts[1])
    assert not any(f"| {name} |" in texts[0] for name in rows)


def test_the_card_of_an_unscored_point_claims_no_test(artefact, tmp_path):
    results = results_of([trial_of(0)])
    text = (export_point(results, results.trials[0], artefact, tmp_path / "out", "knee") / "README.md").read_text()
    assert "No test set was scored" in text
    assert "test accuracy" not in text


def test_the_card_s_code_is_six_lines_of_python_that_name_model_and_labels(results, artefact, tmp_path):
    out = export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL).group(1)
    assert len(code.splitlines()) == 6
    ast.parse(code)
    assert "'models/tiny', num_labels=2" in code
    assert "['mail', 'web']" in code


def code_of(results, artefact, out):
    text = (export_point(results, results.trials[0], artefact, out, "knee") / "README.md").read_text()
    return re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


def test_the_card_of_a_pair_task_shows_two_texts(artefact, tmp_path):
    pairs = TASK.model_copy(update={"pairs": True})
    assert 'tokenizer("A text.", "Its pair."' in code_of(
        results_of([trial_of(0)], task=pairs), artefact, tmp_path / "2"
    )
    assert "Its pair" not in code_of(results_of([trial_of(0)]), artefact, tmp_path / "1")


def test_the_card_of_a_half_precision_point_computes_as_the_trial_did(artefact, tmp_path):
    measured = measurements_of(dtype="bfloat16, bfloat16 autocast")
    results = results_of([trial_of(0, measurements=measured)])
    code = code_of(results, artefact, tmp_path / "out")
    ast.parse(code)
    lines = code.splitlines()
    heads = [f"base.get_submodule({path!r}).float()" for path in results.record.layout.head_paths]
    assert heads
    start = lines.index(heads[0])
    assert lines[start : start + len(heads)] == heads
    assert lines[start + len(heads)].startswith("model = PeftModel.from_pretrained(base")
    assert lines[-2] == "with torch.autocast(base.device.type, dtype=torch.bfloat16):"
    assert lines[0] == "import torch"


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
@pytest.mark.parametrize("generates", [False, True], ids=["classifies", "generates"])
def test_the_card_of_a_point_in_few_bits_loads_the_base_as_the_search_did(
    artefact, tmp_path, monkeypatch, load_in, generates
):
    model = language_model("llama") if generates else classifier_of("bert")
    model.save_pretrained(tmp_path / "base")
    source, heads, whole = str(tmp_path / "base"), head_paths(model), kept_whole(model, ())
    (artefact / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": source}))
    changes = {"task": TASK.model_copy(update={"kind": "causal-lm", "labels": ()})} if generates else {}
    results = results_of([trial_of(0)], model={"source": source, "load_in": load_in}, **changes)
    layout = results.record.layout.model_copy(update={"head_paths": heads})
    results = replace(results, record=results.record.model_copy(update={"layout": layout}))
    code = code_of(results, artefact, tmp_path / "out")
    ast.parse(code)
    assert ".to(base.device)" in code
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| frozen weights | in {load_in[0]} bits, by bitsandbytes |" in card
    assert "autopeft[quantised]" in card

    given, loaded = {}, copy.deepcopy(model).bfloat16()
    automatic = AutoModelForCausalLM if generates else AutoModelForSequenceClassification
    # Instead of weights that go to a GPU: what it was asked for, and a half-precision model.
    monkeypatch.setattr(automatic, "from_pretrained", lambda name, **options: given.update(options) or loaded)
    lines = code.split("\nmodel = ")[0].splitlines()
    exec("\n".join(line for line in lines if not line.startswith("tokenizer = ")), {})
    assert whole
    assert given["quantization_config"].to_dict() == quantisation(load_in, whole).to_dict()
    assert given["device_map"] == {"": 0}
    norms_in_float32(expected := copy.deepcopy(model).bfloat16())
    for path in heads:
        expected.get_submodule(path).float()
    assert {name: part.dtype for name, part in loaded.named_parameters()} == {
        name: part.dtype for name, part in expected.named_parameters()
    }


def test_a_prompt_of_the_card_ends_as_in_training(artefact, tmp_path):
    language = TASK.model_copy(update={"kind": "causal-lm", "labels": ()})
    data = {"train": "train.jsonl", "validation": "dev.jsonl"}
    found = {}
    for index, separator in enumerate(["\n", " ->", ""]):
        results = results_of([trial_of(0)], task=language, data={**data, "separator": separator})
        code = code_of(results, artefact, tmp_path / str(index))
        ast.parse(code)
        (asked,) = re.findall(r"^inputs = tokenizer\((.*), return_tensors", code, re.MULTILINE)
        found[separator] = eval(asked)
        assert ("# As in training" in code) is bool(separator)
    assert found == {"\n": "A prompt.\n", " ->": "A prompt. ->", "": "A prompt."}


def test_a_second_export_takes_the_place_of_the_first(results, artefact, tmp_path):
    out = export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    other = write_artefact(tmp_path / "artefacts" / "0002")
    (other / "test_predictions.json").unlink()
    export_point(results, results.front.members[2], other, out, "most-accurate")
    assert names(out) == FILES - {"test_predictions.json"}
    assert yaml.safe_load((out / "candidate.yaml").read_text())["trial"] == 2
    assert names(tmp_path) == {"out", "artefacts"}


def test_an_empty_folder_is_filled(results, artefact, tmp_path):
    (tmp_path / "out").mkdir()
    assert names(export_point(results, results.front.members[0], artefact, tmp_path / "out", "knee")) == FILES


@pytest.mark.parametrize("earlier", [True, False])
def test_files_of_somebody_else_are_never_overwritten(results, artefact, tmp_path, earlier):
    out = tmp_path / "out"
    if earlier:
        export_point(results, results.front.members[1], artefact, out, "knee")
    out.mkdir(exist_ok=True)
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"notes\.txt"):
        export_point(results, results.front.members[2], artefact, out, "knee")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_model_folder_is_not_taken_for_an_export(results, artefact, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("my own project")
    with pytest.raises(UserError, match=r"README\.md"):
        export_point(results, results.front.members[1], artefact, out, "knee")


def test_a_file_in_the_way_is_named(results, artefact, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    with pytest.raises(UserError, match="cannot be written"):
        export_point(results, results.front.members[1], artefact, tmp_path / "out" / "below", "knee")


def test_a_removed_adapter_leaves_its_recipe_and_the_command_that_trains_it(results, tmp_path):
    dominated = results.trials[3]
    with pytest.raises(UserError, match="autopeft train") as error:
        export_point(results, dominated, tmp_path / "gone", tmp_path / "out", "3")
    recipe = tmp_path / "out-recipe.yaml"
    assert str(recipe) in str(error.value)
    assert Recipe.load(recipe).candidate == dominated.trial.candidate
    assert not (tmp_path / "out").exists()


def test_best_has_the_three_points(results, tmp_path):
    folders = {number: write_artefact(tmp_path / "artefacts" / str(number)) for number in range(3)}
    exported = export_best(results, folders.__getitem__, tmp_path / "best")
    assert exported == {pick: tmp_path / "best" / pick for pick in PICKS}
    trials = {
        pick: yaml.safe_load((folder / "candidate.yaml").read_text())["trial"] for pick, folder in exported.items()
    }
    assert trials == {"knee": 1, "most-accurate": 2, "smallest": 0}
    assert (exported["knee"] / "adapter_model.safetensors").read_bytes() == b"weights of 1"


def test_an_empty_front_exports_nothing(tmp_path):
    assert export_best(results_of([]), lambda number: tmp_path, tmp_path / "best") == {}
    assert not (tmp_path / "best").exists()


def test_no_path_of_the_machine_is_written(results, artefact, tmp_path):
    out = export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    for path in out.iterdir():
        if path.suffix in (".md", ".yaml", ".json"):
            assert str(tmp_path) not in path.read_text()
            assert not re.search(r"/(home|root|usr|tmp|venv)/", path.read_text())


def test_exporting_needs_no_torch():
    code = (
        "import sys, autopeft.export.best, autopeft.export.tables, autopeft.export.recipe; "
        "print(sorted({'torch', 'transformers', 'peft', 'ray', 'optuna', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mix_is_exported_with_the_lines_that_load_it(results, artefact, tmp_path):
    (artefact / "adapter_config.json").rename(artefact / "autopeft_adapter.json")
    (artefact / "autopeft_adapter.json").write_text('{"base_model_name_or_path": "some-org/some-model"}')
    out = export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    assert names(out) == (FILES - {"adapter_config.json"}) | {"autopeft_adapter.json"}
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("autopeft", "some-org/some-model")
    code = re.search(r"```python\n(.*?)```", card.content, re.DOTALL).group(1)
    ast.parse(code)
    assert 'model = autopeft.load_adapter(base, ".")' in code
    assert "peft import" not in code


def test_the_lines_for_a_language_model_generate(artefact, tmp_path):
    results = results_of()
    task = results.record.task.model_copy(update={"kind": "causal-lm", "labels": (), "chat": True})
    results = replace(results, record=results.record.model_copy(update={"task": task}))
    out = export_point(results, results.front.members[1], artefact, tmp_path / "out", "knee")
    card = ModelCard.load(out / "README.md")
    code = re.search(r"```python\n(.*?)```", card.content, re.DOTALL).group(1)
    ast.parse(code)
    assert "AutoModelForCausalLM.from_pretrained" in code
    assert "apply_chat_template" in code
    assert "num_labels" not in code
    assert card.data.pipeline_tag == "text-generation"
