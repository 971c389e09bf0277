"""`autopeft methods`: one table for a person, for programs and for the documentation."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from autopeft.app.methods import method_table
from autopeft.cli.main import app
from autopeft.cli.methods import as_markdown, show
from autopeft.domain.layout import TaskName
from autopeft.evaluate.methods import METHODS, UNREGISTERED

ROOT = Path(__file__).parents[2]


def printed(width: int, model: str | None = None) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width, highlight=False, color_system=None), method_table(None, model))
    return stream.getvalue()


def config_only(folder: Path, model_type: str) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return str(folder)


def test_the_page_of_the_documentation_is_the_table_of_today() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == as_markdown(method_table()), "run: autopeft methods --markdown > docs/methods.md"


@pytest.mark.parametrize("width", [80, 120])
def test_every_method_is_on_one_line_of_a_terminal(width: int) -> None:
    lines = printed(width).splitlines()
    assert max(map(len, lines)) <= width
    body = lines[1 : lines.index("")]
    assert [line.split()[0] for line in body] == list(METHODS)
    assert ("Hu et al." in body[0]) is (width == 120)
    for name in UNREGISTERED:
        assert name in "\n".join(lines)


def test_with_a_model_it_says_what_would_be_trained_or_why_not(tmp_path: Path) -> None:
    text = printed(100, config_only(tmp_path, "gpt2"))
    lora = next(line for line in text.splitlines() if line.startswith("lora "))
    # 12 layers, one matrix of 768 by 2304 each
    assert lora.split()[-3:] == [f"{12 * (768 + 2304):,}", "to", f"{64 * 12 * (768 + 2304):,}"]
    assert "a decoder would classify by its padding" in text
    assert "Conv1D" in text


def test_programs_get_the_same_as_json(tmp_path: Path) -> None:
    model = config_only(tmp_path, "bert")
    result = CliRunner().invoke(app, ["methods", "--task", "causal-lm", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    names = [row["name"] for row in found["rows"]]
    assert names == [name for name, method in METHODS.items() if TaskName.CAUSAL_LM in method.facts.tasks]
    assert {"adaption-prompt", "lora"} <= set(names)
    fits = {row.name: row.fit for row in method_table(model=model).rows}
    lora, unfit = fits["lora"], fits["adaption-prompt"]
    assert lora is not None
    assert unfit is not None
    assert (lora.fewest, lora.most, lora.fits) == (24 * 1536, 64 * 24 * 1536, True)
    assert not unfit.fits
