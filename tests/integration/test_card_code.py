"""The code in the card of an exported point, run as it is written, predicts what the search measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.test_whole_export import PRUNING, searched

pytestmark = pytest.mark.slow
CASES: dict[str, tuple[str, str, str, dict[str, Any] | None]] = {
    "pruned-half": ("llama", "bfloat16", "lora", {**PRUNING, "ffn_scope": "global", "masks": "fold"}),
    "pruned-adapters-half": ("bert", "bfloat16", "parallel", {**PRUNING, "masks": "discard"}),
    "pruned-single": ("gpt2", "float32", "lora", {**PRUNING, "ffn_scope": "global", "masks": "fold"}),
    "half": ("llama", "bfloat16", "lora", None),
}
"""Model, dtype of its weights, method, pruning."""


@pytest.mark.parametrize("case", CASES)
def test_the_card_s_code_predicts_the_rows_that_were_measured(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, dtype, method, pruning = CASES[case]
    searched(tmp_path, method, pruning, kind, dtype, steps=40)
    point = tmp_path / "runs" / "a-run" / "best" / "knee"
    found = re.search(r"```python\n(.*?)```", (point / "README.md").read_text(), re.DOTALL)
    assert found is not None
    code = found[1]
    assert ("torch.autocast" in code) == (dtype == "bfloat16")
    monkeypatch.chdir(point)
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out.split()[-1] in ("good", "bad")
    # Every row of the test split in the place of the text that the card shows, in its own lines.
    last = [line for line in code.splitlines() if "print(" in line or line.startswith("with ")]
    said = []
    for row in map(json.loads, (tmp_path / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()):
        with torch.no_grad():
            exec("\n".join(last).replace('"A text."', repr(row["text"])), names)
        said.append(capsys.readouterr().out.split()[-1])
    measured = json.loads((point / "test_predictions.json").read_text())["predictions"]
    assert len(set(measured)) == 2, "the trial tells the rows apart"
    # Alone a row has no padding, which may round a close call to the other side in half precision.
    assert sum(one != other for one, other in zip(said, measured, strict=True)) <= (dtype == "bfloat16")
