"""Every mistake in a space's YAML is named with file, line, what is allowed and what to do; all at once."""

import pytest
import yaml

from autopeft.domain.errors import UserError
from autopeft.spaces import available, describe, load_space, parse
from autopeft.spaces.source import MAX_BYTES
from tests.unit.space_layouts import SMALL

RANK = "rank: {kind: choice, values: [1, 2, 4], ordered: true}"
LAYERS = "layers: {kind: layers, modes: top-k}"
SETTINGS = "settings: {rank: $rank, alpha_ratio: 1, dropout: 0}"


def mistakes(old, new):
    """What is said of the small space with one text replaced."""
    assert old in SMALL
    with pytest.raises(UserError) as raised:
        parse(SMALL.replace(old, new), "mine.yaml")
    return [str(problem) for problem in raised.value.problems]


BAD = {
    "misspelt key": (
        "summary:",
        "sumary:",
        "mine.yaml:2: sumary: nothing is called 'sumary'",
        "Did you mean 'summary'?",
    ),
    "misspelt key of a parameter": (RANK, RANK.replace("ordered", "orderd"), "mine.yaml:4: parameters.rank", "ordered"),
    "misspelt key of an insertion": ("method: lora", "metod: lora", "candidate.insertions.0", "Did you mean 'method'?"),
    "missing key": ("name: small\n", "", "mine.yaml:1: name: is missing", "Add 'name:'"),
    "no kind": (RANK, "rank: {values: [1, 2]}", "mine.yaml:4: parameters.rank: has no kind", "kind: choice"),
    "unknown kind": (RANK, "rank: {kind: chioce, values: [1]}", "nothing is called 'chioce'", "mean 'choice'?"),
    "wrong type": (RANK, "rank: {kind: int, low: one, high: 4}", "mine.yaml:4: parameters.rank.low", "integer"),
    "list of lists": (
        RANK,
        "rank: {kind: choice, values: [[1, 2]]}",
        "parameters.rank.values.0: [1, 2] is not",
        "a number",
    ),
    "no values": (RANK, "rank: {kind: choice, values: []}", "parameters.rank.values: is empty", "at least 1"),
    "value twice": (RANK, "rank: {kind: choice, values: [1, 1]}", "parameters.rank", "names a value twice"),
    "low above high": (RANK, "rank: {kind: int, low: 4, high: 1}", "parameters.rank", "low <= high"),
    "log of zero": (RANK, "rank: {kind: float, low: 0, high: 1, log: true}", "parameters.rank", "low > 0"),
    "infinite bound": (RANK, "rank: {kind: float, low: 1, high: .inf}", "parameters.rank", "finite"),
    "key given twice": (LAYERS, f"{RANK}\n  {LAYERS}", "mine.yaml:5: parameters.rank: is given twice", "Remove"),
    "bad name": (RANK, f"{RANK}\n  2nd.x: {{kind: choice, values: [1]}}", "'2nd.x' is no name", "letters"),
    "unknown layer mode": ("modes: top-k", "modes: topk", "parameters.layers.modes", "'top-k', 'range' or 'bits'"),
    "at_least above at_most": ("top-k}", "top-k, at_least: 4, at_most: 2}", "at_least 4 is above at_most 2", ""),
    "unknown role": ("attention.value]", "atention.value]", "nothing is called 'atention.value'", "attention.value'?"),
    "empty set": (
        "all-linear: all",
        "all-linear: []",
        "sets.all-linear: names no module",
        "all, or",
    ),
    "unknown reference": (
        "rank: $rank,",
        "rank: $rnk,",
        "settings.rank: nothing is called 'rnk'",
        "Did you mean 'rank'?",
    ),
    "unused parameter": ("rank: $rank,", "rank: 4,", "mine.yaml:4: parameters.rank: nothing uses", "Write $rank"),
    "layers from another kind": ("layers: $layers", "layers: $rank", "'rank' is of kind choice", "kind layers"),
    "setting from layers": (
        "rank: $rank,",
        "rank: $layers,",
        "'layers' is of kind layers",
        "int or float or choice or sizes",
    ),
    "no dollar": ("layers: $layers", "layers: layers", "'layers' is not understood", "Write $layers"),
    "condition on nothing": (RANK, RANK[:-1] + ", when: {varant: x}}", "when.varant: nothing is called 'varant'", ""),
    "condition on one below": (RANK, RANK[:-1] + ", when: {modules: all-linear}}", "when.modules", "above it"),
    "condition that never holds": (LAYERS, LAYERS[:-1] + ", when: {rank: [8]}}", "'rank' is never 8", "1, 2, 4"),
    "condition on a float": (
        LAYERS,
        "x: {kind: float, low: 1, high: 2}\n  " + LAYERS[:-1] + ", when: {x: 1}}",
        "nothing is called 'x'",
        "",
    ),
    "conditional without otherwise": (
        LAYERS,
        LAYERS[:-1] + ", when: {rank: 1}}",
        "'layers' has no value where its `when` does not hold",
        "`otherwise: VALUE` at mine.yaml:5",
    ),
    "otherwise without when": (RANK, RANK[:-1] + ", otherwise: 1}", "has `otherwise` but no `when`", "Remove it"),
    "learning rate that is none": ("learning_rate: 1e-3", "learning_rate: fast", "'fast' is no learning rate", "$name"),
    "learning rate of zero": ("learning_rate: 1e-3", "learning_rate: 0", "0 is no learning rate", "above 0"),
    "no insertion": (
        "insertions:\n    - method: lora",
        "insertions: []\n  x:\n    - method: lora",
        "insertions",
        "at least 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_named_with_its_place_and_what_to_do(case):
    old, new, found, allowed = BAD[case]
    said = mistakes(old, new)
    assert any(found in one and allowed in one for one in said), said
    assert all(one.startswith("mine.yaml:") for one in said)


def test_all_mistakes_are_shown_together():
    text = SMALL.replace("$rank", "$rnk").replace("attention.value", "attention.vlaue").replace("$layers", "$layrs")
    with pytest.raises(UserError) as raised:
        parse(text, "mine.yaml")
    said = str(raised.value)
    assert all(name in said for name in ("'rnk'", "'attention.vlaue'", "'layrs'", "parameters.rank: nothing uses"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("name: [1, 2\nsummary: x", "mine.yaml:2: this is not YAML"),
        ("- a\n- b\n", "mine.yaml:1: ['a', 'b']"),
        ("just text", "'just text'"),
        ("a: &x 1\nb: *x\n", "mine.yaml:2: '*x' is an alias"),
        ("a: !!python/object/apply:os.getcwd []\n", "this is not YAML: could not determine a constructor"),
        ("a: b\n---\nc: d\n", "this is not YAML: but found another document"),
        ("name: " + "x" * MAX_BYTES, "too large"),
    ],
)
def test_what_is_no_space_at_all_is_refused_in_words(text, found):
    with pytest.raises(UserError) as raised:
        parse(text, "mine.yaml")
    assert found in str(raised.value)


def test_numbers_may_be_written_with_an_exponent_alone():
    assert parse(SMALL, "mine.yaml").candidate.learning_rate == 1e-3
    assert yaml.safe_load("1e-3") == "1e-3", "the reason for our own resolver"


def test_a_space_is_found_by_name_and_by_path(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(SMALL)
    assert load_space("lora").name == "lora"
    assert load_space(str(path)).name == "small"
    without_suffix = tmp_path / "own"
    without_suffix.write_text(SMALL)
    assert load_space(str(without_suffix)).name == "small"


def test_a_folder_in_the_current_directory_does_not_hide_a_packaged_space(tmp_path, monkeypatch):
    (tmp_path / "lora").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert load_space("lora").name == "lora"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("lroa", "Did you mean 'lora'?"),
        ("missing.yaml", "there is no file missing.yaml"),
        ("folder.yaml", "folder.yaml is a folder"),
        ("latin.yaml", "a YAML file in UTF-8"),
    ],
)
def test_a_space_that_is_not_there_or_cannot_be_read_is_said_so(asked, found, tmp_path, monkeypatch):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        load_space(asked)
    assert found in str(raised.value)


def test_packaged_spaces_are_listed_and_are_called_as_their_file():
    listed = available()
    assert "lora" in [one.name for one in listed]
    for one in listed:
        assert not one.problem
        assert one.summary
        assert load_space(one.name).name == one.name


def test_every_parameter_of_a_packaged_space_is_described():
    for one in available():
        space = load_space(one.name)
        rows = describe(space)
        treatments = [f"candidate.{key}" for key in ("pruning", "policy") if getattr(space.candidate, key) is not None]
        assert [row.name for row in rows if not row.name.startswith("candidate.")] == list(space.parameters)
        assert {row.name for row in rows if row.name.startswith("candidate.")} == set(treatments)
        assert len(rows) == len(space.parameters) + len(treatments)
        assert all(row.summary and row.values for row in rows)
    alpha = next(row for row in describe(load_space("lora")) if row.name == "alpha_ratio")
    assert alpha.values == "0.5, 1, 2, 4"
    assert alpha.when == "variant is lora or rslora or dora"
