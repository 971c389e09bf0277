"""Several insertions in one candidate: sizes, parts of the depth, what is left out, and what cannot stand together."""

import pytest

from autopeft.domain.errors import UserError
from autopeft.domain.space import ChoiceDomain
from autopeft.spaces import bind, describe, parse
from autopeft.spaces.layers import part_of
from tests.unit.space_layouts import BERT, BERT_6, METHODS, Rules, layout

LADDER = "{kind: sizes, of: hidden_size, halvings: 8, one: true, absent: true}"
MIX = f"""\
name: mix
summary: For tests.
parameters:
  low: {LADDER}
  top: {LADDER}
  layers: {{kind: layers, modes: bits}}
candidate:
  at_least: 1
  insertions:
    - {{method: bump, layers: $layers, part: 1/2, unless: {{low: 0}}, settings: {{size: $low}}}}
    - {{method: bump, layers: $layers, part: 2/2, unless: {{top: 0}}, settings: {{size: $top}}}}
  learning_rate: 1e-3
"""
HEAD = "name: n\nsummary: s\nparameters:\n  way: {kind: choice, values: [x, y, z]}\n"
HEAD += "  number: {kind: int, low: 0, high: 2}\n"


def bound(text=MIX, model=BERT_6, **changes):
    return bind(parse(text, "mine.yaml"), model, {**METHODS, **changes})


def insertions(*written):
    """A space of these insertions and one more, so that every parameter is used."""
    lines = "".join(f"    - {one}\n" for one in (*written, "{method: bias, when: {way: x}, unless: {number: 1}}"))
    return f"{HEAD}candidate:\n  insertions:\n{lines}  learning_rate: 1e-3\n"


def refused(text, model=BERT_6):
    with pytest.raises(UserError) as raised:
        bound(text, model)
    return [str(problem) for problem in raised.value.problems]


def switches(*layers, depth=6):
    return {f"layers.{index}": index in layers for index in range(depth)}


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (768, (0, 1, 3, 6, 12, 24, 48, 96, 192, 384, 768)),
        (1024, (0, 1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)),
        (20, (0, 1, 2, 5, 10, 20)),
        (1, (0, 1)),
    ],
)
def test_sizes_are_halves_of_the_model_s_width_rounded_down_without_repeats(width, expected):
    space = bound(model=layout(BERT, 6, hidden_size=width))
    assert space.parameters[0].domain == ChoiceDomain(values=expected, ordered=True)


def test_a_ladder_has_one_and_absent_only_where_asked_for():
    text = (
        MIX.replace(", one: true, absent: true", "").replace(", unless: {low: 0}", "").replace(", unless: {top: 0}", "")
    )
    assert bound(text, layout(BERT, 6, hidden_size=768)).parameters[0].domain.values[0] == 3


@pytest.mark.parametrize(
    ("depth", "parts", "expected"),
    [
        (12, 3, [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]),
        (7, 3, [(0, 1), (2, 3), (4, 5, 6)]),
        (5, 2, [(0, 1), (2, 3, 4)]),
        (4, 4, [(0,), (1,), (2,), (3,)]),
    ],
)
def test_parts_cover_the_depth_once_and_are_nearly_equal(depth, parts, expected):
    found = [part_of(depth, (part, parts)) for part in range(1, parts + 1)]
    assert found == expected
    assert [layer for part in found for layer in part] == list(range(depth))


def test_an_insertion_is_left_out_where_its_size_is_absent():
    space = bound()
    candidate = space.resolve({"low": 0, "top": 12, **switches(0, 4, 5)})
    assert [(one.settings, one.layers) for one in candidate.insertions] == [({"size": 12}, (4, 5))]


def test_a_setting_that_leaves_fewer_insertions_than_needed_stands_for_nothing():
    space = bound()
    assert space.resolve({"low": 0, "top": 0, **switches(0, 1, 2)}) is None
    assert space.resolve({"low": 3, "top": 3, **switches()}) is None
    assert space.resolve({"low": 3, "top": 0, **switches(5)}) is None, "no layer of its part"
    assert space.resolve({"low": 3, "top": 0, **switches(1)}) is not None


def test_equal_insertions_into_parts_are_one():
    space = bound()
    (whole,) = space.resolve({"low": 6, "top": 6, **switches(0, 2, 3)}).insertions
    assert whole.layers == (0, 2, 3)
    assert len(space.resolve({"low": 6, "top": 3, **switches(0, 2, 3)}).insertions) == 2


def test_a_condition_on_a_size_that_the_model_s_ladder_lacks_is_refused():
    said = refused(MIX.replace("unless: {low: 0}", "unless: {low: 5}"))[0]
    assert said.startswith(
        "mine.yaml:10: candidate.insertions.0.unless.low: on this model, 'low' is never 5; allowed: 0, 1"
    )


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("part: 1/2", "part: 3/2", "candidate.insertions.0.part: 3/2 is no part of a whole"),
        ("part: 1/2", "part: 0/2", "0/2 is no part of a whole"),
        ("part: 1/2", "part: half", "candidate.insertions.0.part: 'half'"),
        ("part: 1/2", "part: 1/9", "the model's 6 layers are too few for 9 parts"),
        ("unless: {low: 0}", "unless: {lwo: 0}", "unless.lwo: nothing is called 'lwo'"),
        ("at_least: 1", "at_least: 3", "candidate.at_least: 3 insertions are asked for; allowed: 0 to 2"),
        ("at_least: 1", "at_least: -1", "candidate.at_least"),
        ("halvings: 8", "halvings: -1", "parameters.low.halvings"),
        ("of: hidden_size", "of: width", "parameters.low.of"),
        (", absent: true", "", "'low' is never 0"),
        ("settings: {size: $low}", "settings: {size: $layers}", "'layers' is of kind layers"),
        ("method: bump", "method: whole", "whole takes no choice of layers"),
    ],
)
def test_mistakes_of_a_mix_are_named(old, new, found):
    assert old in MIX
    assert any(found in said for said in refused(MIX.replace(old, new, 1))), refused(MIX.replace(old, new, 1))


def test_an_insertion_that_its_conditions_never_let_in_is_refused():
    text = insertions("{method: bump, when: {way: z}, unless: {size: 0}, settings: {size: $size}}").replace(
        "candidate:\n", "  size: {kind: choice, values: [0, 4], when: {way: x}, otherwise: 0}\ncandidate:\n"
    )
    (said,) = refused(text)
    assert "candidate.insertions.0: is never in a candidate: its conditions leave no value to $size" in said


def test_a_size_that_the_method_does_not_take_is_refused_but_absent_is_no_size():
    small = Rules(
        "bump", {"size": METHODS["bump"].facts.settings["size"].model_copy(update={"high": 100})}, {"size": 1}
    )
    small.facts = METHODS["bump"].facts.__class__(**{**vars(small.facts), "takes_modules": False})
    with pytest.raises(UserError) as raised:
        bound(model=layout(BERT, 6, hidden_size=768), bump=small)
    said = [str(one) for one in raised.value.problems]
    assert [one.partition(": ")[0] for one in said] == ["mine.yaml:4", "mine.yaml:5"]
    assert all("768 is outside what 'size' of method bump takes; allowed: 1 to 100" in one for one in said)


# -- conflicts


def test_two_insertions_that_claim_one_module_are_refused_with_the_pair_and_the_module():
    (said,) = refused(insertions("{method: lora}", "{method: dora, modules: [attention.value]}"))
    assert said.startswith(
        "mine.yaml:9: candidate.insertions.1: insertion 0 (lora) and insertion 1 (dora) can be in one"
    )
    assert "both take layers.0.attention.value and 5 more" in said
    assert "exclude each other with `when`" in said


@pytest.mark.parametrize(
    "pair",
    [
        ("{method: lora, modules: [attention.query]}", "{method: dora, modules: [attention.value]}"),
        ("{method: lora, layers: [0, 1, 2]}", "{method: dora, layers: [3, 4, 5]}"),
        ("{method: lora, part: 1/3}", "{method: dora, part: 2/3}"),
        ("{method: lora, when: {way: x}}", "{method: dora, when: {way: [y, z]}}"),
        ("{method: lora, unless: {way: [y, z]}}", "{method: dora, unless: {way: x}}"),
        ("{method: lora, unless: {number: 0}}", "{method: dora, when: {number: 0}}"),
        ("{method: lora}", "{method: bump}"),
        ("{method: whole, when: {way: y}}", "{method: lora, unless: {way: y}}"),
    ],
)
def test_insertions_that_never_meet_are_no_conflict(pair):
    assert bound(insertions(*pair)).size() == 9


@pytest.mark.parametrize(
    "pair",
    [
        ("{method: lora, when: {way: [x, y]}}", "{method: dora, when: {way: [y, z]}}"),
        ("{method: lora, unless: {way: x}}", "{method: dora, unless: {way: y}}"),
        ("{method: lora, unless: {number: 0}}", "{method: dora, when: {way: x}}"),
        ("{method: lora, part: 1/3}", "{method: dora, part: 1/2}"),
        ("{method: bump}", "{method: bump, layers: [5]}"),
    ],
)
def test_insertions_that_can_meet_are(pair):
    assert any("can be in one candidate" in said for said in refused(insertions(*pair)))


def test_a_method_that_stands_alone_is_refused_beside_another():
    (said,) = refused(insertions("{method: whole, when: {way: y}}", "{method: lora}"))
    assert "insertion 0 (whole) and insertion 1 (lora)" in said
    assert "whole has to be the only insertion" in said


def test_methods_of_one_choice_are_not_compared_with_each_other():
    text = insertions("{method: $m, part: 1/2}", "{method: $m, part: 2/2}").replace(
        "parameters:\n", "parameters:\n  m: {kind: choice, values: [lora, dora]}\n"
    )
    assert bound(text).size() == 18
    other = text.replace("part: 1/2}", "part: 2/2}")
    assert any("insertion 0 (lora) and insertion 1 (lora)" in said for said in refused(other))


def test_a_choice_among_methods_leaves_out_those_that_stand_alone_where_there_are_others():
    text = insertions("{method: $m}", "{method: bump}").replace(
        "parameters:\n", "parameters:\n  m: {kind: methods, among: [lora, whole]}\n"
    )
    space = bound(text)
    assert space.parameters[0].domain.values == ("lora",)
    assert "Left out of 'm': whole (stands alone, and there are other insertions)." in space.notices


def test_layers_of_two_choices_may_meet():
    text = insertions("{method: lora, layers: $a}", "{method: dora, layers: $b}").replace(
        "parameters:\n",
        "parameters:\n  a: {kind: layers, modes: top-k, at_most: 2}\n  b: {kind: layers, modes: top-k, at_most: 3}\n",
    )
    assert any("both take layers.4.attention.query" in said for said in refused(text))


def test_the_table_tells_a_ladder():
    row, _, layers = describe(parse(MIX, "mine.yaml"))
    assert layers.values == "a switch for each layer"
    assert (row.kind, row.values) == ("sizes", "0, 1, hidden_size / 256 to hidden_size in halves")
