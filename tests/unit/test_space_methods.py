"""Spaces that choose the method: which ones a model can take, their knobs, their layers and their learning rates."""

import random

import pytest

from autopeft.domain.errors import UserError
from autopeft.domain.layout import TaskName
from autopeft.domain.space import ChoiceDomain, Condition
from autopeft.spaces import bind, describe, parse
from tests.unit.space_layouts import BERT, BERT_6, METHODS, LoraRules, layout
from tests.unit.test_space_binding import drawn

LANGUAGE = layout(BERT, 6, task=TaskName.CAUSAL_LM, head_paths=())
EVERY = """\
name: every
summary: For tests.
parameters:
  method: {kind: methods, among: all}
  layers: {kind: layers, modes: top-k}
  learning_rate: {kind: learning-rate, of: method}
candidate:
  insertions:
    - {method: $method, layers: $layers}
  learning_rate: $learning_rate
"""
CHOICE = """\
name: choice
summary: For tests.
parameters:
  method: {kind: choice, values: [lora, dora]}
  rank: {kind: choice, values: [1, 2], ordered: true}
candidate:
  insertions:
    - {method: $method, settings: {rank: $rank}}
  learning_rate: 1e-3
"""


def bound(text=EVERY, model=BERT_6, **changes):
    return bind(parse(text, "mine.yaml"), model, {**METHODS, **changes})


def refused(text, model=BERT_6):
    with pytest.raises(UserError) as raised:
        bound(text, model)
    return [str(problem) for problem in raised.value.problems]


def by_name(space):
    return {parameter.name: parameter for parameter in space.parameters}


def test_the_choice_holds_the_methods_that_model_and_task_can_take_and_the_others_are_told():
    space = bound()
    fits = ("lora", "rslora", "dora", "pissa", "bump", "bias", "top", "whole")
    assert by_name(space)["method"].domain.values == fits
    assert space.notices == ("Left out of 'method': prompt (cannot be trained for sequence-classification).",)
    assert "prompt" in by_name(bound(model=LANGUAGE))["method"].domain.values


def test_every_method_has_its_own_knob_with_the_steps_that_fit():
    parameters = by_name(bound())
    rank = parameters["method.lora.rank"]
    assert rank.domain == ChoiceDomain(values=(1, 2, 4, 8, 16), ordered=True), "512 is wider than the model"
    assert rank.when == (Condition(parameter="method", values=("lora",)),)
    assert parameters["method.bump.size"].domain.values == (1, 3, 6)
    assert not {"method.bias.None", "method.top.length"} & set(parameters), "nothing to choose"


def test_a_knob_with_one_step_is_set_to_it():
    space = bound()
    candidate = space.resolve({"method": "top", "layers.k": 2, "learning_rate.position": 0.5})
    assert candidate.insertions[0].settings == {"length": 4}
    assert candidate.insertions[0].layers == (4, 5)


@pytest.mark.parametrize(("most", "steps"), [(5, (1, 2, 4, 8, 16)), (3, (1, 4, 16)), (2, (1, 16)), (1, ())])
def test_at_most_so_many_steps_of_a_knob_are_kept_with_both_ends(most, steps):
    space = bound(EVERY.replace("among: all", f"among: [lora], at_most: {most}"))
    if steps:
        assert by_name(space)["method.lora.rank"].domain.values == steps
    else:
        values = {"method": "lora", "layers.k": 1, "learning_rate.position": 0}
        assert space.resolve(values).insertions[0].settings["rank"] == 8, "the usual rank"


def test_methods_without_a_choice_of_layers_get_all_of_them_and_have_no_parameter_for_it():
    space = bound()
    assert by_name(space)["layers.k"].when == (
        Condition(parameter="method", values=("lora", "rslora", "dora", "pissa", "bump", "bias", "top")),
    )
    whole = space.resolve({"method": "whole", "learning_rate.position": 0.0}).insertions[0]
    assert whole.layers == (0, 1, 2, 3, 4, 5)
    assert whole.modules == ()
    with pytest.raises(UserError, match=r"layers\.k: has a value, but its conditions do not hold"):
        space.resolve({"method": "whole", "layers.k": 2, "learning_rate.position": 0.0})


def test_a_choice_of_layers_that_no_method_takes_is_left_out():
    space = bound(EVERY.replace("among: all", "among: [whole]"))
    assert list(by_name(space)) == ["method", "learning_rate.position"]
    assert space.notices == ("'layers' is left out: no method that is left takes such a choice.",)


def test_layers_may_be_written_above_the_method():
    layers = "  layers: {kind: layers, modes: top-k}\n"
    space = bound(EVERY.replace(layers, "").replace("parameters:\n", f"parameters:\n{layers}"))
    names = list(by_name(space))
    assert names.index("method") < names.index("layers.k")


def test_a_choice_of_modules_exists_only_for_methods_that_take_one():
    modules = "  modules: {kind: modules, sets: {qv: [attention.query, attention.value], ffn: [ffn.*]}}\n"
    text = EVERY.replace("  learning_rate:", f"{modules}  learning_rate:", 1).replace(
        "layers: $layers}", "layers: $layers, modules: $modules}"
    )
    space = bound(text)
    assert by_name(space)["modules"].when[0].values == ("lora", "rslora", "dora", "pissa")
    values = {"method": "lora", "method.lora.rank": 1, "layers.k": 1, "learning_rate.position": 0.0}
    assert space.resolve({**values, "modules": "ffn"}).insertions[0].modules == ("ffn.in", "ffn.out")


@pytest.mark.parametrize("modes", ["bits", "range", "[top-k, bits]"])
def test_a_method_for_the_top_alone_is_left_out_where_layers_are_chosen_one_by_one(modes):
    space = bound(EVERY.replace("modes: top-k", f"modes: {modes}"))
    assert "top" not in by_name(space)["method"].domain.values
    assert "Left out of 'method': top (takes the last layers only)." in space.notices


def test_a_method_that_fits_on_no_step_is_left_out_and_one_that_fits_nowhere_refuses_the_space():
    narrow = layout(dict.fromkeys(BERT, (4, 4)), 2)
    space = bound(EVERY.replace("among: all", "among: [lora, bump]"), narrow)
    assert by_name(space)["method.lora.rank"].domain.values == (1, 2, 4)
    (said,) = refused(EVERY.replace("among: all", "among: [prompt]"))
    assert said.startswith("mine.yaml:4: parameters.method: no method fits this model (prompt: cannot be trained")


def test_the_learning_rate_is_a_place_in_the_range_of_the_method():
    space = bound(model=LANGUAGE)
    values = {"method": "prompt", "method.prompt.length": 4}
    rates = [space.resolve({**values, "learning_rate.position": at}).learning_rate for at in (0.0, 0.5, 1.0)]
    assert rates == [0.01, 0.0548, 0.3]
    assert space.resolve({"method": "whole", "learning_rate.position": 1.0}).learning_rate == 1e-4


@pytest.mark.parametrize("model", [BERT_6, LANGUAGE])
def test_every_point_has_all_settings_and_fits(model):
    space, rng = bound(model=model), random.Random(2)
    seen = set()
    for _ in range(200):
        values = drawn(space, rng)
        (insertion,) = space.resolve(values).insertions
        facts = METHODS[insertion.method].facts
        assert set(insertion.settings) == set(facts.settings)
        assert METHODS[insertion.method].problems(insertion, model) == []
        assert bool(insertion.modules) == facts.takes_modules
        seen.add(insertion.method)
    assert seen == set(by_name(space)["method"].domain.values)


def test_a_choice_of_names_takes_settings_that_suit_each():
    space = bound(CHOICE)
    insertion = space.resolve({"method": "dora", "rank": 2}).insertions[0]
    assert insertion.method == "dora"
    assert insertion.settings == {"rank": 2, "alpha_ratio": 2.0, "dropout": 0.0}
    assert insertion.modules == ("attention.query", "attention.value"), "the default of the method"
    assert space.size() == 4
    (said,) = refused(CHOICE.replace("dora]", "bump]"))
    assert said.startswith("mine.yaml:8: candidate.insertions.0.settings.rank: nothing is called 'rank'; allowed: size")


def test_a_base_in_few_bits_leaves_out_the_named_methods_that_it_cannot_have_while_others_remain():
    names = ("lora", "dora")
    methods = {"lora": LoraRules("lora", quantised=True), "dora": LoraRules("dora")}
    few = BERT_6.model_copy(update={"quantised": True})
    space = bound(CHOICE, few, **methods)
    assert by_name(space)["method"].domain.values == ("lora",)
    assert space.notices == ("Left out of 'method': dora (cannot be trained on a base in 4 or 8 bits).",)
    assert space.size() == 2
    whole = bound(CHOICE, **methods)
    assert (by_name(whole)["method"].domain.values, whole.notices) == (names, ())
    none = bound(CHOICE, few)
    assert by_name(none)["method"].domain.values == names, "where none remains, the methods say what is wrong"


def test_a_setting_is_tried_only_with_the_methods_that_its_condition_allows():
    text = CHOICE.replace("values: [1, 2], ordered: true}", "values: [1, 5000], when: {method: dora}, otherwise: 1}")
    assert any("5000 is outside what 'rank' of method dora takes" in said for said in refused(text))
    space = bound(text.replace("5000", "4"))
    assert space.resolve({"method": "lora"}).insertions[0].settings["rank"] == 1


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("among: all", "among: [lorra]", "mine.yaml:4: parameters.method.among: nothing is called 'lorra'"),
        ("among: all", "among: []", "parameters.method.among"),
        ("among: all", "amung: all", "nothing is called 'amung'"),
        ("among: all", "among: all, at_most: 0", "parameters.method.at_most"),
        ("among: all", "among: all, otherwise: lora", "nothing is called 'otherwise'"),
        ("$method,", "$layers,", "'layers' is of kind layers; allowed: a parameter of kind choice or methods"),
        ("$method,", "lora,", "parameters.method: no insertion takes its method from it"),
        (
            "of: method",
            "of: layers",
            "parameters.learning_rate.of: 'layers' chooses no method; allowed: method. Name one",
        ),
        ("of: method", "of: metod", "of: nothing is called 'metod'; allowed: method. Did you mean 'method'?"),
        ("$method,", "lora,", "parameters.learning_rate.of: 'method' chooses no method. Write `kind: methods` for one"),
        (
            "modes: top-k}",
            "modes: top-k, when: {method: lorra}, otherwise: all}",
            "parameters.layers.when.method: nothing is called 'lorra'",
        ),
        ("$layers}", "$layers, settings: {depht: 3}}", "no method fits this model"),
        ("$layers}", "$layers, modules: [ffn.gate]}", "Did you"),
    ],
)
def test_mistakes_of_a_choice_of_methods_are_named(old, new, found):
    assert old in EVERY
    text = EVERY.replace(old, new, 1)
    if found == "Did you":
        # Only methods that take no modules are left where the model has none of the asked ones.
        assert by_name(bound(text))["method"].domain.values == ("bump", "bias", "top", "whole")
        return
    assert any(found in said for said in refused(text)), refused(text)


@pytest.mark.parametrize(
    ("insertion", "found"),
    [
        ("{method: whole, layers: $layers}", "candidate.insertions.0.layers: whole takes no choice of layers"),
        ("{method: bump, layers: $layers, modules: [ffn.out]}", "modules: bump takes no choice of modules"),
        ("{method: lorra, layers: $layers}", "candidate.insertions.0.method: nothing is called 'lorra'"),
    ],
)
def test_choices_that_a_named_method_does_not_take_are_refused(insertion, found):
    text = EVERY.replace("{method: $method, layers: $layers}", insertion).replace(
        "  method: {kind: methods, among: all}\n", ""
    )
    text = text.replace("{kind: learning-rate, of: method}", "{kind: float, low: 1e-4, high: 1e-3, log: true}")
    assert any(found in said for said in refused(text)), refused(text)


def test_a_named_method_without_layers_and_modules_is_put_in():
    text = "name: n\nsummary: s\nparameters:\n  rate: {kind: choice, values: [1e-4, 1e-3]}\n"
    text += "candidate:\n  insertions: [{method: whole}]\n  learning_rate: $rate\n"
    (insertion,) = bound(text).resolve({"rate": 1e-4}).insertions
    assert (insertion.layers, insertion.modules, insertion.settings) == ((0, 1, 2, 3, 4, 5), (), {})


def test_the_table_of_a_space_tells_the_new_kinds_with_and_without_a_model():
    rows = {row.name: row for row in describe(parse(EVERY, "mine.yaml"))}
    assert rows["method"].values == "all that fit, each with its knob"
    assert rows["learning_rate"].values == "0 to 1 of the usual range of 'method'"
    rows = {row.name: row for row in describe(bound())}
    assert rows["layers.k"].when == "method is not whole"
    assert rows["method.lora.rank"].when == "method is lora"
    assert rows["method.lora.rank"].summary == "rank of LORA."
