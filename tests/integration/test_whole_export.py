"""`autopeft export --whole`: a folder that transformers alone loads, in a process that never saw this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.cli.main import main
from tests.unit.evaluate_models import save_model, write_data

pytestmark = pytest.mark.slow

RELOAD = """
import json, re, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".").eval()
tokenizer = AutoTokenizer.from_pretrained(".")
with torch.no_grad():
    found = model(**tokenizer(json.loads(sys.argv[1]), padding=True, return_tensors="pt")).logits.tolist()
assert not {"autopeft", "peft"} & sys.modules.keys()
print(json.dumps([found, sum(part.numel() for part in model.parameters())]))
exec(re.search(r"```python\\n(.*?)```", open("README.md").read(), re.DOTALL)[1])
"""
TEXTS = ["the film was lovely and warm", "dull story", "a very very broken scene with the poor cold film"]
PRUNING = {"heads": 0.5, "ffn": 0.5, "modules": 0.5, "ranks": 0.5, "ffn_scope": "layer", "masks": "fold"}


def command(*arguments: Any) -> int:
    before = sys.argv
    sys.argv = ["autopeft", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def searched(
    tmp_path: Path,
    method: str,
    pruning: dict[str, Any] | None,
    kind: str = "llama",
    dtype: str = "float32",
    steps: int = 12,
) -> Path:
    """A run of one trial on a tiny model, by default with grouped heads; returns the folder of its base model."""
    base, data = save_model(tmp_path / kind, kind), write_data(tmp_path / "data")
    insertion = {"method": method, "settings": {"rank" if method == "lora" else "size": 4}}
    candidate: dict[str, Any] = {"insertions": [insertion], "learning_rate": "$rate"}
    if pruning is not None:
        candidate["pruning"] = {"criterion": "light-peft", "settings": pruning}
    rate = {"kind": "choice", "values": [0.01, 0.02]}
    space = {"name": "one", "summary": "s", "parameters": {"rate": rate}, "candidate": candidate}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(space))
    files = [part for name, path in data.items() for part in (f"--{name}", path)]
    assert not command(
        *("search", "--model", base, *files, "--space", tmp_path / "one.yaml", "--budget", 1, "--steps", steps),
        *("--dtype", dtype, "--runs", tmp_path / "runs", "--name", "a-run", "--quiet", "--runner", "local"),
    )
    return base


def test_a_process_without_this_project_finds_the_same_logits_and_runs_the_card(tmp_path: Path) -> None:
    base, runs = searched(tmp_path, "lora", PRUNING), ("--runs", tmp_path / "runs")
    out = tmp_path / "out"
    assert not command("export", "a-run", *runs, "--whole", "--out", out)
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=out,
    )
    found, said = done.stdout.splitlines()[-2:]
    logits, parameters = json.loads(found)
    assert said in ("good", "bad")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    assert parameters < sum(part.numel() for part in model.parameters())
    model.config.pad_token_id = 0
    model = autopeft.load_adapter(model, tmp_path / "runs" / "a-run" / "best" / "knee")
    with torch.no_grad():
        expected = model(**AutoTokenizer.from_pretrained(base)(TEXTS, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-4, atol=1e-5)
    assert "library_name: transformers" in (out / "README.md").read_text()
    assert not command("export", "a-run", *runs, "--whole", "--out", out), "an earlier export is replaced"
    assert command("export", "a-run", *runs, "--out", out) == 2, "but not by something else"


def test_uneven_widths_are_refused_with_what_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched(tmp_path, "lora", {**PRUNING, "ffn_scope": "global"})
    capsys.readouterr()
    assert command("export", "a-run", "--runs", tmp_path / "runs", "--whole", "--out", tmp_path / "out") == 2
    found = " ".join(capsys.readouterr().err.split())
    assert "its layers have different numbers of feed-forward units" in found
    assert "allowed: points with `ffn_scope: layer`" in found
    assert "Export it without --whole" in found
    assert not (tmp_path / "out").exists()
