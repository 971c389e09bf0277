"""`autopeft estimate` as a person calls it: tables, JSON, and every mistake at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.cli.main import main
from tests.unit.estimate_models import LAYERS, model_folder, peft_file, space_file

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run the command line in this process, beside a model's config: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "model")
    peft_file(tmp_path, peft_type="LORA", r=4)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autopeft", "estimate", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


STEP = ("--model", "model", "--batch", "2", "--seq", "24", "--dtype", "bf16")


def test_json_has_the_keys_that_other_programs_read(call: Call) -> None:
    code, out, err = call(*STEP, "--peft-config", "adapter_config.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {"train_peak_bytes", "train_peak_reserved_bytes", "trainable_parameters", "source"} <= set(found)
    assert found["source"] == "predicted"
    assert found["trainable_parameters"] == LAYERS * 4 * (64 + 64 + 64 + 32)
    assert found["training"]["batch"] == 2
    assert found["training"]["dtype"] == "bfloat16"
    code, out, err = call(*STEP, "--full", "--json")
    whole = json.loads(out)
    assert whole == json.loads(call(*STEP, "--peft-config", "none", "--json")[1])
    assert whole["trainable_parameters"] > found["trainable_parameters"]


def test_the_table_names_parts_layers_and_devices_and_stays_narrow(call: Call) -> None:
    code, out, err = call(*STEP, "--peft-config", "adapter_config.json", "--device", "l40s,24GiB")
    assert code == 0, err
    words = ("weights of the base model", "PEFT weights", "gradients", "optimiser state", "logits and loss", "reserved")
    for word in (*words, "saved activations", "layer 0", "l40s", "24GiB", "fits", "predicted peak", "LORA r4"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 120


def test_json_comes_with_no_word_of_the_libraries(tmp_path: Path) -> None:
    """In a process of its own, where nothing was imported or warned of before."""
    model_folder(tmp_path / "model")
    peft_file(tmp_path, peft_type="LORA", r=4)
    flags = [*STEP, "--peft-config", "adapter_config.json", "--gradient-checkpointing", "--json"]
    command = [sys.executable, "-m", "autopeft.cli.main", "estimate", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.stderr == ""
    assert json.loads(ran.stdout)["training"]["gradient_checkpointing"]


def test_a_space_and_a_candidate_are_told_too(call: Call, tmp_path: Path) -> None:
    space = ("--space", space_file(tmp_path), "--task", "causal-lm", "--sample", "3", "--max-memory", "1GiB")
    code, out, err = call(*STEP, *space)
    assert code == 0, err
    for word in ("3 of 3 candidates", "smallest", "largest", "median", "100% fit --max-memory"):
        assert word in out
    found = json.loads(call(*STEP, *space, "--json")[1])
    assert (found["candidates"], found["shares"][0]["share"]) == (3, 1.0)
    (tmp_path / "c.yaml").write_text("insertions: [{method: lora, layers: [2]}]\n", encoding="utf-8")
    largest = ("--batch", "auto", "--max-memory", "30MiB")
    code, out, err = call("--model", "model", "--seq", "24", "--candidate", "c.yaml", "--task", "causal-lm", *largest)
    assert code == 0, err
    assert "lora" in out
    assert "layer 2" in out


def test_the_limit_of_a_spec_is_a_limit_here(call: Call, tmp_path: Path) -> None:
    space_file(tmp_path)
    (tmp_path / "spec.yaml").write_text("model: model\nspace: small.yaml\nmax_memory: 2GiB\n", encoding="utf-8")
    code, out, err = call("spec.yaml", "--batch", "2", "--seq", "24", "--task", "causal-lm", "--sample", "2", "--json")
    assert code == 0, err
    (share,) = json.loads(out)["shares"]
    assert (share["limit"], share["limit_bytes"]) == ("max_memory", 2 << 30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "l40z"), ("l40z", "l40s", "24GiB")),
        (("--device", "24"), ("no unit", "GiB")),
        (("--max-memory", "24"), ("no unit", "GiB")),
        (("--max-memory", "1kB"), ("base model's weights", "more than")),
        (("--batch", "0"), ("--batch", "auto")),
        (("--batch", "auto"), ("needs a limit", "--device")),
        (("--dtype", "bf17"), ("bf17", "bfloat16")),
        (("--task", "poetry"), ("poetry", "causal-lm")),
        (("--optimizer", "lion"), ("lion", "adamw-8bit")),
        (("--attention", "flashy"), ("flashy", "eager")),
        (("--seq", "3000"), ("no rows of 3000 tokens", "256")),
        (("--space", "lora"), ("--space", "--peft-config")),
        (("--probe",), ("--probe", "--peft-config")),
        (("--budget", "8"), ("--budget", "Add --probe")),
        (("--full",), ("--full", "Leave out one")),
        (("--peft-config", "gone.json"), ("gone.json", "--peft-config")),
        (("--model", "nowhere/at/all"), ("nowhere/at/all",)),
        (("--load-in", "4bit", "--dtype", "fp32"), ("--load-in",)),
        (("--devise", "l40s"), ("--devise", "--device")),
    ],
)
def test_mistakes_are_named(call: Call, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    step = [*STEP, "--peft-config", "adapter_config.json"]
    code, out, err = call(*step, *arguments)
    assert code == 2, (out, err)
    assert "Traceback" not in err
    assert out == ""
    for word in words:
        assert word in " ".join(err.split())


def test_all_mistakes_come_at_once(call: Call) -> None:
    code, _, err = call("--model", "model", "--device", "l40z", "--batch", "x", "--task", "poetry", "--max-memory", "9")
    assert code == 2
    for word in ("4 mistakes", "l40z", "'x'", "poetry", "'9' has no unit"):
        assert word in err
    code, _, err = call(*STEP, "--space", "lora", "--data", "python-docs", "--train", "a.jsonl")
    assert code == 2
    for word in ("--data", "--train", "where --seq says how long the rows are"):
        assert word in " ".join(err.split())
    code, _, err = call(*STEP, "--optimizer", "sgd")
    assert code == 2
    assert "--peft-config" in err


def test_help_starts_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['autopeft', 'estimate', '--help']\n"
        "from autopeft.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'ray', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--peft-config" in done.stdout
