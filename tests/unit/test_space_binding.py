"""A space bound to a model: its parameters, its candidates, and every way in which the two do not fit."""

import itertools
import random

import pytest

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import UserError
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.search.encoding import enumerate_values
from autopeft.spaces import bind, describe, load_space, parse
from tests.unit.space_layouts import BERT, BERT_6, GPT2_12, LLAMA_16, METHODS, SMALL, LoraRules, layout

MODULES = (
    "  modules:\n    kind: modules\n    sets: {attention-qv: [attention.query, attention.value], all-linear: all}\n"
)
LAYERS = "layers: {kind: layers, modes: top-k}"
ALL_MODES = "layers: {kind: layers, modes: [top-k, range, bits]}"


def bound(text=SMALL, model=BERT_6, methods=METHODS):
    return bind(parse(text, "mine.yaml"), model, methods)


def changed(*pairs):
    text = SMALL
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def names(space):
    return [parameter.name for parameter in space.parameters]


def misfits(text, model=BERT_6, methods=METHODS):
    with pytest.raises(UserError) as raised:
        bound(text, model, methods)
    return [str(problem) for problem in raised.value.problems]


def drawn(space, rng):
    """Random values of the active parameters."""
    values = {}
    for parameter in space.parameters:
        if parameter.active(values):
            match parameter.domain:
                case IntDomain(low=low, high=high):
                    values[parameter.name] = rng.randint(low, high)
                case FloatDomain(low=low, high=high):
                    values[parameter.name] = rng.uniform(low, high)
                case ChoiceDomain(values=choices):
                    values[parameter.name] = rng.choice(choices)
    return values


# -- parameters and candidates


def test_layers_and_modules_become_parameters_of_the_model():
    space = bound()
    assert names(space) == ["rank", "layers.k", "modules"]
    assert space.parameters[1].domain == IntDomain(low=1, high=6)
    assert space.parameters[2].domain.values == ("attention-qv", "all-linear")
    assert space.notices == ()


def test_a_candidate_names_its_layers_and_modules():
    candidate = bound().resolve({"rank": 4, "layers.k": 2, "modules": "attention-qv"})
    assert candidate.insertions == (
        Insertion(
            method="lora",
            layers=(4, 5),
            modules=("attention.query", "attention.value"),
            settings={"rank": 4, "alpha_ratio": 1.0, "dropout": 0.0},
        ),
    )
    assert candidate.learning_rate == 1e-3


def test_a_range_starts_anywhere_and_ends_with_the_model():
    space = bound(changed((LAYERS, LAYERS.replace("top-k", "range"))))
    assert names(space) == ["rank", "layers.first", "layers.count", "modules"]
    values = {"rank": 1, "modules": "all-linear", "layers.first": 2}
    assert space.resolve({**values, "layers.count": 3}).layers() == (2, 3, 4)
    assert space.resolve({**values, "layers.count": 6}).layers() == (2, 3, 4, 5)


def test_bits_switch_each_layer_and_none_of_them_leaves_the_head():
    space = bound(changed((LAYERS, LAYERS.replace("top-k", "bits"))))
    assert names(space) == ["rank", *(f"layers.{index}" for index in range(6)), "modules"]
    values = {"rank": 1, "modules": "all-linear", **{f"layers.{index}": index in (0, 3) for index in range(6)}}
    assert space.resolve(values).layers() == (0, 3)
    off = {**values, "layers.0": False, "layers.3": False}
    assert space.resolve(off).insertions == ()
    assert space.resolve(off).digest == space.resolve({**off, "rank": 4}).digest


def test_several_modes_become_a_choice_with_parameters_of_their_own():
    space = bound(changed((LAYERS, ALL_MODES)))
    assert names(space)[1:5] == ["layers.mode", "layers.k", "layers.first", "layers.count"]
    assert names(space)[5:11] == [f"layers.{index}" for index in range(6)]
    rest = {"rank": 2, "modules": "all-linear"}
    every = (
        {"layers.mode": "top-k", "layers.k": 6},
        {"layers.mode": "range", "layers.first": 0, "layers.count": 6},
        {"layers.mode": "bits", **{f"layers.{index}": True for index in range(6)}},
    )
    assert len({space.resolve({**rest, **layers}).digest for layers in every}) == 1


def test_bounds_on_the_number_of_layers_are_kept():
    text = changed((LAYERS, "layers: {kind: layers, modes: [top-k, range], at_least: 2, at_most: 3}"))
    space = bound(text)
    by_name = {parameter.name: parameter.domain for parameter in space.parameters}
    assert by_name["layers.k"] == by_name["layers.count"] == IntDomain(low=2, high=3)
    assert by_name["layers.first"] == IntDomain(low=0, high=4)
    rng = random.Random(0)
    assert {len(space.resolve(drawn(space, rng)).layers()) for _ in range(200)} == {2, 3}


def test_layers_and_modules_may_be_fixed():
    text = changed(
        (f"  {LAYERS}\n", ""),
        ("layers: $layers", "layers: [5, 0, 5]"),
        ("modules: $modules", "modules: [ffn.*]"),
        (MODULES, ""),
    )
    insertion = bound(text).resolve({"rank": 1}).insertions[0]
    assert insertion.layers == (0, 5)
    assert insertion.modules == ("ffn.in", "ffn.out")


def test_a_fused_matrix_counts_for_query_key_and_value():
    space = bound(model=GPT2_12)
    insertion = space.resolve({"rank": 1, "layers.k": 1, "modules": "attention-qv"}).insertions[0]
    assert insertion.layers == (11,)
    assert insertion.modules == ("attention.qkv",)


def test_a_gated_model_trains_its_gate_with_the_others():
    text = changed(("all-linear: all", "ffn: [ffn.*]"))
    insertion = bound(text, LLAMA_16).resolve({"rank": 1, "layers.k": 1, "modules": "ffn"}).insertions[0]
    assert insertion.modules == ("ffn.gate", "ffn.in", "ffn.out")


def test_a_set_with_a_role_that_the_model_lacks_is_left_out_and_said_so():
    text = changed(("all-linear: all", "gate: [ffn.gate, ffn.in]"))
    space = bound(text)
    assert space.parameters[2].domain.values == ("attention-qv",)
    assert space.notices == ("Module set 'gate' is left out: the model has no ffn.gate.",)
    assert bound(text, LLAMA_16).notices == ()


def test_two_sets_that_are_the_same_on_a_model_are_one():
    text = changed(("all-linear: all", "attention-qk: [attention.query, attention.key]"))
    space = bound(text, GPT2_12)
    assert space.parameters[2].domain.values == ("attention-qv",)
    assert space.notices == ("Module set 'attention-qk' is left out: on this model it is the same as 'attention-qv'.",)


def test_equal_settings_written_differently_are_one_candidate():
    values = {"layers.k": 1, "modules": "all-linear", "rank": 2}
    texts = (
        changed(("dropout: 0", f"dropout: {zero}"), ("alpha_ratio: 1,", f"alpha_ratio: {one},"))
        for zero in ("0", "0.0", "-0.0")
        for one in ("1", "1.0")
    )
    digests = {bound(text).resolve(values).digest for text in texts}
    assert len(digests) == 1
    assert bound().resolve({**values, "rank": 2.0, "layers.k": 1.0}).digest in digests


def test_a_parameter_that_does_not_exist_is_replaced_by_its_otherwise():
    space = bind(load_space("lora"), BERT_6, METHODS)
    values = {"rank": 8, "dropout": 0.0, "modules": "ffn", "layers.k": 2, "learning_rate": 1e-3}
    pissa = space.resolve({**values, "variant": "pissa"}).insertions[0].settings
    lora = space.resolve({**values, "variant": "lora", "alpha_ratio": 4.0}).insertions[0].settings
    assert (pissa["alpha_ratio"], lora["alpha_ratio"]) == (1.0, 4.0)


def test_an_insertion_may_exist_only_under_a_condition():
    text = changed(
        ("  rank:", "  where: {kind: choice, values: [low, high, both]}\n  rank:"),
        (
            "  learning_rate: 1e-3",
            "    - method: dora\n      layers: [0]\n      when: {where: [low, both]}\n"
            "      settings: {rank: 1, alpha_ratio: 1, dropout: 0}\n  learning_rate: 1e-3",
        ),
        (
            "    - method: lora\n      layers: $layers",
            "    - method: lora\n      when: {where: [high, both]}\n      layers: $layers",
        ),
        (LAYERS, LAYERS[:-1] + ", at_most: 3, when: {where: [high, both]}}"),
    )
    space = bound(text)
    rest = {"rank": 1, "modules": "all-linear"}
    assert space.resolve({**rest, "where": "low"}).layers() == (0,)
    both = space.resolve({**rest, "where": "both", "layers.k": 1})
    assert [(one.method, one.layers) for one in both.insertions] == [("lora", (5,)), ("dora", (0,))]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"layers.k": 1, "modules": "all-linear"}, "rank: has no value; allowed: 1, 2, 4"),
        ({"rank": 3, "layers.k": 1, "modules": "all-linear"}, "rank: 3 is outside"),
        ({"rank": True, "layers.k": 1, "modules": "all-linear"}, "rank: True is outside"),
        ({"rank": 1, "layers.k": 7, "modules": "all-linear"}, "layers.k: 7 is outside; allowed: 1 to 6"),
        ({"rank": 1, "layers.k": 1.5, "modules": "all-linear"}, "layers.k: 1.5 is outside"),
        ({"rank": 1, "layers.k": 1, "modules": "attention"}, "modules: 'attention' is outside"),
        ({"rank": 1, "layers.k": 1, "modules": "all-linear", "x": 1}, "nothing is called 'x'"),
    ],
)
def test_values_that_the_space_does_not_have_are_refused(values, found):
    with pytest.raises(UserError) as raised:
        bound().resolve(values)
    assert found in str(raised.value)


def test_a_value_of_a_parameter_that_is_not_active_is_refused():
    space = bound(changed((LAYERS, ALL_MODES)))
    values = {"rank": 1, "modules": "all-linear", "layers.mode": "top-k", "layers.k": 1, "layers.first": 0}
    with pytest.raises(UserError, match=r"layers\.first: has a value, but its conditions do not hold"):
        space.resolve(values)


# -- what does not fit


def test_a_rank_larger_than_a_layer_is_refused_and_never_clipped():
    text = changed(("values: [1, 2, 4]", "values: [1, 256, 512]"))
    (said,) = misfits(text)
    assert said.startswith("mine.yaml:4: parameters.rank: 512 is larger than attention.query (and 5 more like it)")
    assert "allowed: 1 to 384" in said
    assert bound(changed(("values: [1, 2, 4]", "values: [1, 256, 384]"))).size() == 36


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (LAYERS, LAYERS[:-1] + ", at_most: 9}", "parameters.layers.at_most: 9 layers are asked for; allowed: 1 to 6"),
        (LAYERS, LAYERS[:-1] + ", at_least: 7}", "7 layers are asked for; allowed: 1 to 6"),
        ("method: lora", "method: lorra", "Did you mean 'lora'?"),
        ("dropout: 0", "dropuot: 0", "nothing is called 'dropuot'"),
        ("dropout: 0", "dropout: 1", "1 is outside what 'dropout' of method lora takes; allowed: 0 to 0.9"),
        ("values: [1, 2, 4]", "values: [0, 2, 4.5]", "parameters.rank: 0, 4.5 is outside what 'rank'"),
        (
            "{attention-qv: [attention.query, attention.value], all-linear: all}",
            "{gate: [ffn.gate], fused: [attention.qkv]}",
            "none of the sets gate, fused fits this model; allowed: attention.query, attention.key",
        ),
    ],
)
def test_what_does_not_fit_the_model_or_the_method_is_named(old, new, found):
    said = misfits(changed((old, new)))
    assert any(found in one for one in said), said
    assert all(one.startswith("mine.yaml:") for one in said)


def test_a_layer_that_the_model_lacks_is_refused():
    text = changed((f"  {LAYERS}\n", ""), ("layers: $layers", "layers: [0, 6, -1]"))
    said = misfits(text)
    assert [one.partition(": ")[2].partition(";")[0] for one in said] == [
        "candidate.insertions.0.layers: there is no layer 6",
        "candidate.insertions.0.layers: there is no layer -1",
    ]
    assert "0 to 5, as the model has 6 layers" in said[0]


def test_fixed_modules_that_the_model_lacks_are_refused():
    text = changed(
        ("modules: $modules", "modules: [ffn.gate]"),
        (MODULES, ""),
    )
    assert any("the model has no ffn.gate; allowed: attention.query" in one for one in misfits(text))


def test_all_misfits_are_shown_together():
    said = "\n".join(
        misfits(changed(("dropout: 0", "dropuot: 0"), (LAYERS, LAYERS[:-1] + ", at_most: 9}"), ("[1, 2, 4]", "[0, 2]")))
    )
    assert all(part in said for part in ("'dropuot'", "9 layers", "0 is outside"))


def test_a_problem_that_only_a_combination_has_is_found():
    class Picky(LoraRules):
        def problems(self, insertion, model):
            from autopeft.domain.errors import Problem

            wrong = insertion.settings["rank"] == 4 and insertion.modules == ("attention.query", "attention.value")
            return [Problem("alpha_ratio", "does not go with rank 4 there")] if wrong else []

    (said,) = misfits(SMALL, methods={"lora": Picky()})
    assert said.startswith("mine.yaml:14: candidate.insertions.0.settings.alpha_ratio: does not go with rank 4 there")


# -- counting, and what holds for every point


@pytest.mark.parametrize(
    "layers", [LAYERS, LAYERS.replace("top-k", "range"), LAYERS.replace("top-k", "bits"), ALL_MODES]
)
def test_the_size_is_what_counting_one_by_one_gives(layers):
    space = bound(changed((LAYERS, layers)), layout(BERT, 4))
    every = list(enumerate_values(space.parameters))
    assert len({tuple(sorted(values.items())) for values in every}) == len(every) == space.size()
    for values in every:
        space.resolve(values)


def test_the_size_counts_conditions_on_conditions():
    text = changed(
        ("  rank: {kind: choice, values: [1, 2, 4], ordered: true}", "  a: {kind: choice, values: [x, y]}\n"
         "  b: {kind: int, low: 1, high: 3, when: {a: x}, otherwise: 1}\n"
         "  rank: {kind: choice, values: [1, 2, 4], when: {b: [2, 3]}, otherwise: 1}"),
    )  # fmt: skip
    space = bound(text, layout(BERT, 2))
    assert space.size() == len(list(enumerate_values(space.parameters))) == (1 + 1 + 2 * 3) * 2 * 2


def test_a_continuous_parameter_makes_the_size_unknown():
    assert bind(load_space("lora"), BERT_6, METHODS).size() is None


def test_a_large_number_of_bits_is_counted_at_once():
    space = bound(changed((LAYERS, LAYERS.replace("top-k", "bits"))), layout(BERT, 64))
    assert space.size() == 3 * 2 * 2**64


@pytest.mark.parametrize("model", [BERT_6, GPT2_12, LLAMA_16])
@pytest.mark.parametrize("text", [SMALL, changed((LAYERS, ALL_MODES)), None])
def test_every_point_is_consistent(text, model):
    space = bind(load_space("lora") if text is None else parse(text, "mine.yaml"), model, METHODS)
    rng, seen = random.Random(7), {}
    for _ in range(150):
        values = drawn(space, rng)
        candidate = space.resolve(values)
        shuffled = dict(rng.sample(list(values.items()), len(values)))
        assert space.resolve(shuffled).digest == candidate.digest
        assert seen.setdefault(candidate.digest, candidate) == candidate
        for insertion in candidate.insertions:
            assert list(insertion.layers) == sorted(set(insertion.layers))
            assert insertion.modules == tuple(sorted(set(insertion.modules)))
            assert set(insertion.settings) == set(METHODS[insertion.method].facts.settings)
            assert not METHODS[insertion.method].problems(insertion, model)
            assert model.paths(insertion.layers, insertion.modules)


@pytest.mark.parametrize("model", [BERT_6, GPT2_12, LLAMA_16])
def test_every_parameter_of_the_lora_space_matters(model):
    space = bind(load_space("lora"), model, METHODS)
    base = {"variant": "lora", "rank": 8, "alpha_ratio": 1.0, "dropout": 0.0, "modules": "ffn"}
    base |= {"layers.k": 2, "learning_rate": 1e-3}
    assert set(names(space)) == set(base)
    other = {"variant": "dora", "rank": 16, "alpha_ratio": 2.0, "dropout": 0.1, "modules": "attention-qv"}
    other |= {"layers.k": 3, "learning_rate": 2e-3}
    digests = [space.resolve({**base, name: other[name]}).digest for name in base]
    assert len({*digests, space.resolve(base).digest}) == len(base) + 1


def test_every_value_of_the_lora_space_can_be_reached_on_a_small_model():
    space = bind(load_space("lora"), BERT_6, METHODS)
    finite = [one for one in space.parameters if isinstance(one.domain, ChoiceDomain)]
    for combination in itertools.product(*(one.domain.values for one in finite)):
        values = dict(zip((one.name for one in finite), combination, strict=True))
        if values["variant"] == "pissa":
            del values["alpha_ratio"]
        space.resolve({**values, "layers.k": 1, "learning_rate": 1e-4})


def test_a_bound_space_is_described_as_the_sampler_sees_it():
    rows = {row.name: row for row in describe(bound(changed((LAYERS, ALL_MODES))))}
    assert rows["layers.k"].values == "1 to 6"
    assert rows["layers.k"].when == "layers.mode is top-k"
    assert rows["layers.5"].summary == "Whether layer 5 is trained."
    assert rows["modules"].values == "attention-qv, all-linear"
