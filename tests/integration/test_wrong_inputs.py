"""A mistake gets a message that names the place, what is allowed and what to do, exit code 2, and no traceback."""

import json
import sys
from pathlib import Path

import pytest

from autopeft.app import folder as run_folder
from autopeft.cli.main import main

ROWS = [
    {"text": "a fine day", "label": "good"},
    {"text": "a bad day", "label": "bad"},
    {"text": "what a fine evening", "label": "good"},
    {"text": "what a bad evening", "label": "bad"},
]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the command line in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["autopeft", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture
def data(tmp_path):
    """Write train.jsonl and dev.jsonl; flags that name them."""

    def write(train=ROWS, validation=ROWS):
        flags = []
        for flag, name, rows in (("--train", "train.jsonl", train), ("--validation", "dev.jsonl", validation)):
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name).write_text(text, encoding="utf-8")
            flags += [flag, name]
        return flags

    return write


@pytest.fixture
def refused(call):
    """Expect exit code 2 and these words on standard error."""

    def expect(arguments, *words):
        code, out, err = call(*arguments)
        assert code == 2, (code, out, err)
        assert "Traceback" not in err
        for word in words:
            assert word in err, f"{word!r} is not in: {err}"
        return err

    return expect


def test_a_misspelt_flag(refused):
    refused(["search", "--modle", "minilm"], "--modle", "--model")


def test_a_misspelt_key_of_a_spec(refused, tmp_path):
    (tmp_path / "spec.yaml").write_text("training:\n  epoks: 3\nbudgte: 3\n")
    refused(["search", "spec.yaml"], "spec.yaml", "epoks", "Did you mean 'epochs'", "budgte", "Did you mean 'budget'")


def test_a_spec_that_is_not_yaml(refused, tmp_path):
    (tmp_path / "spec.yaml").write_text("model: minilm\n  budget: [3\n")
    refused(["validate", "spec.yaml"], "spec.yaml:2")


def test_a_spec_that_is_not_there(refused):
    refused(["validate", "nowhere.yaml"], "nowhere.yaml")


def test_every_mistake_of_a_spec_at_once(refused, tmp_path):
    (tmp_path / "spec.yaml").write_text("seed: -1\nbudget: soon\ntraining: {batch_size: 0}\nretries: many\n")
    refused(["validate", "spec.yaml"], "seed", "budget", "8gpu-h", "training.batch_size", "retries")


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--space", "lroa", ("space", "Did you mean 'lora'")),
        ("--objectives", "acuracy", ("objectives", "Did you mean 'accuracy'")),
        ("--sampler", "tpa", ("sampler", "Did you mean 'tpe'", "nsga2")),
        ("--metric", "acuracy", ("metric", "matthews")),
        ("--budget", "0", ("budget", "8gpu-h")),
        ("--budget", "soon", ("budget", "'soon'", "8gpu-h")),
        ("--budget", "8gpu-h", ("budget", "GPU")),
        ("--max-memory", "lots", ("max_memory", "lots")),
        ("--max-memory", "1MiB", ("max_memory", "base model", "more than")),
        ("--gpus-per-worker", "1", ("gpus_per_worker", "torch sees none", "doctor")),
        ("--set", "warmup", ("--set", "KEY=VALUE")),
        ("--set", "training.warmpu=0.1", ("warmpu", "Did you mean 'warmup'")),
        ("--name", "../up", ("name",)),
    ],
)
def test_a_wrong_value(refused, flag, value, words):
    if "GPU" in words or flag == "--gpus-per-worker":
        from autopeft.evaluate.inspection import devices

        if devices().gpus:
            pytest.skip("this machine has a GPU")
    refused(["search", flag, value], *words)


def test_a_missing_file(refused):
    refused(["search", "--train", "no.jsonl", "--validation", "none.jsonl"], "no.jsonl", "none.jsonl")


def test_a_missing_validation_file(refused, data):
    refused(["search", *data()[:2]], "validation")


def test_an_empty_file(refused, data):
    refused(["search", *data(train="")], "train.jsonl", "empty")


def test_a_broken_json_line_with_its_number(refused, data):
    broken = json.dumps(ROWS[0]) + "\n" + '{"text": "x", \n'
    refused(["search", *data(train=broken)], "train.jsonl:2")


def test_a_missing_column_with_those_found(refused, data):
    rows = [{"sentence": row["text"], "label": row["label"]} for row in ROWS]
    refused(["search", *data(train=rows)], "train.jsonl", "'text'", "sentence")


def test_one_class_only(refused, data):
    refused(["search", *data(train=[ROWS[0], ROWS[2]], validation=[ROWS[0]])], "train.jsonl", "good")


def test_a_label_that_training_lacks(refused, data):
    refused(["search", *data(validation=[*ROWS, {"text": "x", "label": "ugly"}])], "dev.jsonl:5", "ugly", "bad")


def test_a_metric_that_the_task_cannot_have(refused, data):
    refused(["search", *data(), "--metric", "spearman"], "metric", "spearman", "accuracy")


def test_an_objective_that_the_task_cannot_have(refused, data):
    refused(["search", *data(), "--objectives", "spearman,train_peak_bytes"], "objectives", "spearman")


def space_text(**changes):
    values = {"rank": "{kind: int, low: 1, high: 8}", **changes}
    return f"""
name: mine
summary: For a test.
parameters:
  rank: {values["rank"]}
{values.get("layers_line", "  layers: {kind: layers, modes: top-k}")}
candidate:
  insertions:
    - method: lora
      layers: {values.get("where", "$layers")}
      modules: all
      settings: {{rank: $rank, alpha_ratio: 1.0, dropout: 0.0}}
  learning_rate: 1.0e-3
"""


def test_a_rank_larger_than_the_layer(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text(space_text(rank="{kind: int, low: 1, high: 4096}"))
    refused(["search", "--space", "mine.yaml"], "mine.yaml", "rank", "384")


def test_a_layer_index_out_of_range(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text(space_text(where="[0, 6]", layers_line=""))
    refused(["search", "--space", "mine.yaml"], "mine.yaml", "6", "5")


def test_a_space_file_that_is_not_there(refused):
    refused(["search", "--space", "mine.yaml"], "mine.yaml", "autopeft spaces")


def test_a_model_folder_without_a_config(refused, tmp_path):
    (tmp_path / "model").mkdir()
    refused(["search", "--model", "model"], "model", "config.json")


def test_a_model_type_without_a_classification_head(refused, tmp_path):
    folder = tmp_path / "vision"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    refused(["search", "--model", "vision"], "vit", "sequence")


def test_a_hub_that_cannot_be_reached(refused, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(["search", "--model", "some-org/some-model-nobody-has"], "some-org/some-model-nobody-has", "hub")


def test_a_run_name_that_another_spec_has(refused, tmp_path):
    from autopeft.domain.spec import SearchSpec

    run_folder.RunFolder(tmp_path / "runs" / "mine").begin(SearchSpec(name="mine", seed=7), {}, "trials.db")
    refused(["search", "--name", "mine"], "mine", "seed: 7 -> 0", "another --name")


def test_a_folder_that_is_no_run(refused, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.txt").write_text("precious")
    refused(["search", "--name", "mine"], "is not a run", "--name")
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "occupied").write_text("a file where a folder is wanted")
    refused(["search", "--runs", "occupied"], "cannot be written", "--runs")


def test_a_disk_that_is_nearly_full(refused, monkeypatch):
    usage = run_folder.shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    refused(["search"], "nearly full", "1 MiB free", "--runs")


@pytest.mark.parametrize("verb", ["resume", "front", "status", "report"])
def test_a_run_that_is_not_there(refused, verb):
    refused([verb, "nothing"], "there are no runs", "autopeft search")


def test_several_mistakes_are_shown_together(refused, data):
    refused(
        ["search", *data(), "--space", "lroa", "--objectives", "acuracy", "--sampler", "tpa"],
        "3 mistakes",
        "'lora'",
        "'accuracy'",
        "'tpe'",
    )


def test_nothing_is_written_when_something_is_wrong(refused, tmp_path):
    refused(["search", "--space", "lroa"])
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_too_few_steps_to_estimate_and_to_train(refused, data):
    few = ["search", *data(), "--space", "light-peft", "--epochs", "1", "--batch-size", "8", "--budget", "1"]
    refused(few, "one optimiser step", "2 steps or more", "--epochs")
    refused(["search", *data(), "--space", "light-peft", "--steps", "1", "--budget", "1"], "one optimiser step")
