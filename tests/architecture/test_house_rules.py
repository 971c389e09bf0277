"""The house rules that no linter knows."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("autopeft", "objectives", "dashboards", "search_spaces", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]
MAX_LINES = 400
BANNED_NAMES = {"utils", "helpers", "manager", "common"}


def imported(path):
    """Top-level and dotted names of every module that a file imports, relative imports left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_a_wheel_has_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES if path.name == "__init__.py"} - {
        "tests"
    }
    content = {"dashboards", "objectives", "search_spaces"}
    assert set(listed) == {f"autopeft.{name}" if name in content else name for name in found}


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_no_module_has_a_name_that_says_nothing(path):
    assert not BANNED_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted((ROOT / "objectives").glob("*.py")), ids=lambda path: path.name)
def test_objectives_know_the_domain_only(path):
    assert all(name.startswith("autopeft.domain") for name in imported(path))


@pytest.mark.parametrize("path", sorted((ROOT / "dashboards").glob("*.py")), ids=lambda path: path.name)
def test_dashboards_know_domain_and_store_only(path):
    for name in imported(path):
        if name.startswith("autopeft"):
            assert name.startswith(("autopeft.domain", "autopeft.store"))
        assert name.split(".")[0] not in {"torch", "ray", "optuna", "transformers", "peft"}


@pytest.mark.parametrize("path", [path for path in SOURCES if "tests" not in path.parts], ids=str)
def test_nothing_is_unpickled(path):
    names = set(imported(path))
    assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    text = path.read_text(encoding="utf-8")
    assert "torch.load(" not in text
    assert not re.search(r"yaml\.(unsafe_load|full_load)\(", text)


@pytest.mark.parametrize("path", [path for path in SOURCES if "tests" not in path.parts], ids=str)
def test_only_the_command_line_prints(path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls or "cli" in path.parts


def test_every_module_says_what_it_is():
    silent = [
        name for path, name in zip(SOURCES, IDS, strict=True) if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == [], "files without a docstring"


def test_the_readme_s_tree_names_every_file_of_the_top_level_and_the_rooms():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## The tree", 1)[1]
    shown = {".py", ".yaml", ".css", ".js"}
    missing = [
        str(path.relative_to(ROOT))
        for folder in ("autopeft", "objectives", "dashboards", "search_spaces")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in shown and path.name != "__init__.py" and path.name not in tree
    ]
    assert missing == [], "files that the README's tree does not name"


def test_the_readme_s_tree_names_no_file_that_is_gone():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## The tree", 1)[1].split("```")[1]
    named = re.findall(r"([\w.-]+\.(?:py|yaml|css|js|toml|md|txt))\b", tree)
    there = {path.name for path in ROOT.rglob("*") if ".git" not in path.parts}
    assert [name for name in named if name not in there] == []


def test_the_import_contracts_hold():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), is_debug_mode=False) == 0
