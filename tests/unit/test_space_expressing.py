"""From a candidate back to the parameters of a space: the inverse of resolving, or the reason why there is none."""

from functools import cache
from itertools import islice

import pytest

from autopeft.domain.candidate import Candidate, Insertion, Policy
from autopeft.domain.carrying import rebound
from autopeft.domain.errors import UserError
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.search.filling import fill
from autopeft.spaces.binding import bind
from autopeft.spaces.expressing import express
from autopeft.spaces.guesses import guesses
from autopeft.spaces.library import available, load_space
from autopeft.spaces.reading import parse
from tests.unit.space_layouts import BERT, LLAMA, layout

NAMES = [one.name for one in available()]


def model(depth=6, modules=BERT, **changes):
    """A model whose layers have attention to prune."""
    plain = layout(modules, depth, head_dim=32, **changes)
    whole = sum(rows * columns for rows, columns in modules.values())
    layers = (
        one.model_copy(update={"parameters": whole, "attention": f"{one.path}.attention"}) for one in plain.layers
    )
    return plain.model_copy(update={"layers": tuple(layers)})


@cache
def bound(name, depth=6):
    return bind(load_space(name), model(depth), METHODS, POLICIES, CRITERIA)


def lora(rank=8, layers=(4, 5), modules=("attention.query", "attention.value"), method="lora", **settings):
    full = {"rank": rank, "alpha_ratio": 1.0, "dropout": 0.0, **settings}
    insertion = Insertion(method=method, layers=layers, modules=tuple(sorted(modules)), settings=full)
    return Candidate(insertions=(insertion,), learning_rate=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_candidate_of_a_space_is_found_again(name):
    for _, candidate in islice(fill(bound(name), 1), 25):
        found = express(candidate, bound(name))
        assert found.candidate == candidate
        assert bound(name).resolve(found.parameters) == candidate
        assert not found.changes


def test_numbers_move_to_the_nearest_and_it_is_said():
    found = express(lora(rank=12, alpha_ratio=1.1), bound("lora"))
    assert found.parameters["rank"] in (8, 16)
    assert found.parameters["alpha_ratio"] == 1.0
    assert {(one.place, one.wanted, one.found) for one in found.changes} == {
        ("rank", 12, found.parameters["rank"]),
        ("alpha_ratio", 1.1, 1.0),
    }
    assert express(lora(rank=300), bound("lora")).parameters["rank"] == 64
    fast = lora().model_copy(update={"learning_rate": 0.5})
    assert express(fast, bound("lora")).candidate.learning_rate == 1e-2


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (lora(layers=(0, 1)), r"layers: layers 0, 1 of lora cannot be chosen; allowed: the last k layers, 1 to 6 of 6"),
        (lora(modules=("attention.key",)), r"modules: lora in attention.key is none of the sets; .*attention-qv"),
        (lora(method="miss"), r"miss is none of its methods; allowed: dora, lora, pissa, rslora"),
        (
            lora().model_copy(update={"policy": Policy(name="lisa")}),
            r"policy: lisa is not one of them; allowed: none",
        ),
    ],
)
def test_what_cannot_be_expressed_names_the_parameter_and_what_is_allowed(candidate, message):
    with pytest.raises(UserError, match=message):
        express(candidate, bound("lora"))


def test_a_mix_goes_from_one_space_to_a_wider_one_and_not_back():
    small, wide = bound("autopeft"), bound("autopeft-plus")
    for _, candidate in islice(fill(small, 4), 12):
        found = express(candidate, wide)
        assert {one.method for one in found.candidate.insertions} == {one.method for one in candidate.insertions}
        assert found.candidate.layers() == candidate.layers()
    plus = next(one for _, one in fill(wide, 4) if any(insertion.method == "lora" for insertion in one.insertions))
    with pytest.raises(UserError, match="lora is none of its methods"):
        express(plus, small)


@pytest.mark.parametrize("name", ["lora", "autopeft", "methods", "full"])
def test_candidates_of_another_depth_are_expressed_once_they_are_carried_over(name):
    small, large = model(6), model(12)
    there = bound(name, 12)
    for _, candidate in islice(fill(bound(name), 2), 20):
        wanted = rebound(candidate, small, large)
        found = express(wanted, there)
        assert [one.layers for one in found.candidate.insertions] == [one.layers for one in wanted.insertions]


@pytest.mark.parametrize("name", NAMES)
def test_first_guesses_are_points_of_their_space_on_any_model(name):
    for changes in ({}, {"depth": 4, "modules": LLAMA, "heads": 64, "kv_heads": 8}):
        found = model(**changes)
        space = bind(load_space(name), found, METHODS, POLICIES, CRITERIA)
        points, notes = guesses(space, found.hidden_size)
        assert points
        assert not notes
        for point in points:
            assert space.resolve(point.parameters) == point.candidate
            assert point.origin == "first guess"


def test_the_guesses_are_what_they_are_called():
    (qv, every, high), _ = guesses(bound("lora"), 384)
    (one,) = qv.candidate.insertions
    assert (one.method, one.settings["rank"], one.modules) == ("lora", 8, ("attention.query", "attention.value"))
    assert one.layers == tuple(range(6))
    assert set(every.candidate.insertions[0].modules) == set(BERT)
    assert (high.candidate.insertions[0].method, high.candidate.insertions[0].settings["rank"]) == ("rslora", 64)
    methods = [point.candidate.insertions[0].method for point in guesses(bound("methods"), 384)[0]]
    assert methods == ["lora", "miss", "rslora"]


SPACE = """
name: mine
summary: For a test.
parameters:
  rank: {kind: choice, values: [1, 2, 4], ordered: true}
  where: {kind: modules, sets: {qv: [attention.query, attention.value], gate: [ffn.gate], all: all}}
  layers: {kind: layers, modes: top-k}
candidate:
  insertions:
    - {method: lora, layers: $layers, modules: $where, settings: {rank: $rank}}
  learning_rate: 1.0e-3
first:
  - {name: one, values: {rank: 2, where: qv, layers: 2}}
"""


def test_a_guess_that_the_model_cannot_have_is_left_out_with_a_note():
    deep = SPACE.replace("layers: 2", "layers: 9")
    points, notes = guesses(bind(parse(deep, "mine.yaml"), model(), METHODS), 384)
    assert not points
    assert notes == ["The first guess 'one' is left out: layers: it asks for 9 layers; allowed: 1 to 6."]
    gate = SPACE.replace("where: qv", "where: gate")
    points, notes = guesses(bind(parse(gate, "mine.yaml"), model(), METHODS), 384)
    assert not points
    assert "gate is not possible on this model; allowed: qv, all" in notes[0]
    assert len(guesses(bind(parse(gate, "mine.yaml"), model(6, LLAMA), METHODS), 384)[0]) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank: 2", "rank: 3", r"mine\.yaml:\d+: first\.0\.values\.rank: 3 is outside; allowed: 1, 2, 4"),
        ("rank: 2, ", "", r"first\.0\.values: 'rank' has no value"),
        ("rank: 2", "rang: 2", r"nothing is called 'rang'.*Did you mean 'rank'"),
        ("where: qv", "where: vq", r"values\.where: 'vq' is outside; allowed: qv, gate, all"),
        ("layers: 2", "layers: 0", r"values\.layers: 0 is outside; allowed: all, or how many"),
        ("name: one, ", "", r"first\.0\.name: is missing"),
        ("name: one,", "name: one, nmae: two,", r"nothing is called 'nmae'"),
    ],
)
def test_mistakes_in_guesses_are_found_when_the_space_is_read(old, new, message):
    head, first, guess = SPACE.partition("first:")
    with pytest.raises(UserError, match=message):
        parse(head + first + guess.replace(old, new), "mine.yaml")
