"""The spaces that come with the package fit real models, every point can be put in, and the command counts them."""

import json
import random
import sys

import pytest

from autopeft.cli.main import main
from autopeft.domain.errors import UserError
from autopeft.domain.layout import TaskName
from autopeft.domain.spec import ModelSpec
from autopeft.evaluate.inspection import inspect_model
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.spaces import available, bind, load_space
from tests.unit.evaluate_models import config_of
from tests.unit.test_space_binding import drawn

BERT_BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
}
PACKAGED = (
    "autopeft",
    "autopeft-plus",
    "full",
    "houlsby",
    "ist",
    "light-peft",
    "lora",
    "mam",
    "methods",
    "parallel",
    "pfeiffer",
    "prefix",
)
MODELS = [
    ("bert", TaskName.SEQUENCE_CLASSIFICATION),
    ("distilbert", TaskName.SEQUENCE_CLASSIFICATION),
    ("gpt2", TaskName.SEQUENCE_CLASSIFICATION),
    ("llama", TaskName.SEQUENCE_CLASSIFICATION),
    ("llama", TaskName.CAUSAL_LM),
]


@pytest.fixture
def config_only(tmp_path):
    """Writes a folder that holds a `config.json` and nothing else."""

    def write(**changes):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**BERT_BASE, **changes}))
        return str(folder)

    return write


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code, standard output and standard error, each on one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["autopeft", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), " ".join(captured.err.split())

    return run


def model_of(kind, task, tmp_path):
    narrow = {"distilbert": {"dim": 64, "hidden_dim": 96}, "gpt2": {"n_embd": 64}}
    usual = {"hidden_size": 64, "num_key_value_heads": 4, "intermediate_size": 96}
    config_of(kind, **narrow.get(kind, usual)).save_pretrained(tmp_path)
    return inspect_model(ModelSpec(source=str(tmp_path)), task)


def test_the_packaged_spaces_are_these():
    assert tuple(one.name for one in available() if one.package == "autopeft.search_spaces") == PACKAGED


@pytest.mark.parametrize(("kind", "task"), MODELS)
def test_every_point_of_every_space_can_be_put_into_the_model(kind, task, tmp_path):
    layout = model_of(kind, task, tmp_path)
    rng = random.Random(5)
    for name in PACKAGED:
        space = bind(load_space(name), layout, METHODS, POLICIES, CRITERIA)
        for _ in range(25):
            candidate = space.resolve(drawn(space, rng))
            for insertion in candidate.insertions if candidate else ():
                assert METHODS[insertion.method].problems(insertion, layout) == []
                assert set(insertion.settings) == set(METHODS[insertion.method].facts.settings)
            claims = [METHODS[one.method].occupied(one, layout) for one in (candidate.insertions if candidate else ())]
            assert len(frozenset().union(*claims)) == sum(len(claim) for claim in claims)
            if candidate and candidate.pruning:
                assert CRITERIA[candidate.pruning.criterion].problems(candidate, layout) == []
            if candidate and candidate.policy:
                rules = POLICIES[candidate.policy.name]
                assert rules.problems(candidate, layout) == []
                assert set(candidate.policy.settings) == set(rules.facts.settings)


def test_the_lora_space_goes_without_pissa_on_a_base_in_few_bits(tmp_path):
    layout = model_of("llama", TaskName.CAUSAL_LM, tmp_path).model_copy(update={"quantised": True})
    space, rng = bind(load_space("lora"), layout, METHODS), random.Random(5)
    assert space.notices == ("Left out of 'variant': pissa (cannot be trained on a base in 4 or 8 bits).",)
    drawn_methods = {insertion.method for _ in range(40) for insertion in space.resolve(drawn(space, rng)).insertions}
    assert drawn_methods == {"lora", "rslora", "dora"}


def test_the_space_of_all_methods_holds_every_method_that_does_not_say_why_it_is_left_out(tmp_path):
    layout = model_of("bert", TaskName.SEQUENCE_CLASSIFICATION, tmp_path)
    space = bind(load_space("methods"), layout, METHODS)
    left_out = " ".join(space.notices)
    inside = next(one for one in space.parameters if one.name == "method").domain.values
    assert len(inside) > 10
    assert [name for name in METHODS if name not in inside and name not in left_out] == []
    rates = METHODS["lora"].facts.learning_rates
    values = {"method": "lora", "method.lora.rank": 1, "layers.k": 3}
    found = [space.resolve({**values, "learning_rate.position": at}).learning_rate for at in (0.0, 1.0)]
    assert tuple(found) == rates


def test_the_presets_mean_what_their_papers_put_in(tmp_path):
    layout = model_of("bert", TaskName.SEQUENCE_CLASSIFICATION, tmp_path)
    rng = random.Random(0)

    def inserted(name):
        space = bind(load_space(name), layout, METHODS)
        return [(one.method, one.modules) for one in space.resolve(drawn(space, rng)).insertions]

    assert inserted("pfeiffer") == [("serial", ("ffn.out",))]
    assert inserted("houlsby") == [("serial", ("attention.output", "ffn.out"))]
    assert inserted("mam") == [("parallel", ("ffn.out",)), ("prefix", ())]
    assert inserted("prefix") == [("prefix", ())]
    assert inserted("parallel")[0][0] == "parallel"


def test_the_paper_s_space_trains_at_the_paper_s_fixed_settings(config_only):
    layout = inspect_model(ModelSpec(source=config_only()))
    space = bind(load_space("autopeft"), layout, METHODS)
    switches = {f"layers.{index}": index in (0, 7) for index in range(12)}
    candidate = space.resolve({"serial": 48, "parallel": 768, "prefix": 1, **switches})
    assert [(one.method, one.layers, one.settings) for one in candidate.insertions] == [
        ("serial", (0, 7), {"size": 48, "activation": "relu", "scale": 1.0}),
        ("parallel", (0, 7), {"size": 768, "activation": "relu", "scale": 4.0}),
        ("prefix", (0, 7), {"length": 1, "bottleneck": 800}),
    ]
    assert candidate.learning_rate == 1e-4


# -- the command


def test_controls_are_values_beside_what_they_control(tmp_path):
    """Random and magnitude pruning drop by the same parameters as Light-PEFT, random-sparse trains by that of IST."""
    layout = model_of("bert", TaskName.SEQUENCE_CLASSIFICATION, tmp_path)
    bound = {name: bind(load_space(name), layout, METHODS, POLICIES, CRITERIA) for name in ("light-peft", "ist")}
    pruned = {"heads": 0.333, "ffn": 0.333, "modules": 0.75, "ranks": 0.5, "penalty": 1e-4, "estimation": 0.2}
    pruned |= {"method": "lora", "size": 8, "ffn_scope": "global", "masks": "discard", "learning_rate": 1e-3}
    settings = set()
    for criterion in CRITERIA:
        pruning = bound["light-peft"].resolve({**pruned, "criterion": criterion}).pruning
        assert pruning.criterion == criterion
        settings.add(json.dumps(dict(pruning.settings), sort_keys=True))
    assert len(settings) == 1
    given = {"method": "lora", "rank": 8, "policy": "random-sparse", "trained": 0.25, "learning_rate": 1e-3}
    control = bound["ist"].resolve(given).policy
    given |= {"policy": "ist", "damped": 0.5, "reward": "exponential"}
    assert control.settings == {"trained": bound["ist"].resolve(given).policy.settings["trained"]}


@pytest.mark.parametrize(
    ("changes", "printed"),
    [
        ({}, "5,446,350 configurations"),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, "22,313,695,950 configurations"),
    ],
)
def test_the_command_counts_for_a_folder_that_holds_only_a_config(config_only, call, changes, printed):
    assert call("spaces", "autopeft", "--model", config_only(**changes), "--count") == (0, printed, "")


def test_a_space_with_a_continuous_parameter_says_that_it_has_no_count(config_only, call):
    arguments = ("spaces", "pfeiffer", "--model", config_only(), "--count")
    assert call(*arguments)[1] == "no count: a parameter is continuous"
    assert json.loads(call(*arguments, "--json")[1])["configurations"] is None


@pytest.mark.parametrize(("arguments", "missing"), [(["autopeft"], "needs --model"), ([], "needs a SPACE and --model")])
def test_counting_without_a_model_says_why_it_cannot(arguments, missing, call):
    code, printed, said = call("spaces", *arguments, "--count")
    assert (code, printed) == (2, "")
    assert f"{missing}: sizes, layers and methods depend on the model" in said


def test_a_bound_space_is_shown_with_what_was_left_out(config_only, call):
    code, shown, _ = call("spaces", "methods", "--model", config_only())
    assert code == 0
    assert "method.lora.rank" in shown
    assert "Left out of 'method': adaption-prompt" in shown


def test_a_config_is_enough_for_the_layout_and_says_what_is_wrong_with_it(config_only):
    layout = inspect_model(ModelSpec(source=config_only()))
    assert (len(layout.layers), layout.hidden_size, layout.head_paths) == (12, 768, ("classifier",))
    assert layout.parameters == 109_483_778, "BERT-base with a head for two classes"
    with pytest.raises(UserError, match="has no sequence-classification head"):
        inspect_model(ModelSpec(source=config_only(model_type="vit")))
    with pytest.raises(UserError, match="cannot be built"):
        inspect_model(ModelSpec(source=config_only(num_attention_heads=7)))
