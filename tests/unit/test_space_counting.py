"""The number of configurations is what trying every setting one by one gives, and is known at once for large spaces."""

import itertools
import random
import time

import pytest

from autopeft.domain.candidate import digest_of
from autopeft.domain.errors import UserError
from autopeft.domain.layout import TaskName
from autopeft.search.encoding import enumerate_values
from autopeft.spaces import bind, load_space, parse
from autopeft.spaces.file import SearchSpaceFile
from tests.unit.space_layouts import BERT, METHODS, SMALL, layout

MODEL = layout(BERT, 3, hidden_size=8)
PARTS = (None, "1/2", "2/2", "2/3")
_SIZES = ("a", "b", "c")


def random_space(rng):
    """A small space with conditions, sizes, a choice of methods, layers of any kind and several insertions."""
    parameters = {"kind": {"kind": "choice", "values": ["x", "y", "z"]}}
    for name in _SIZES:
        parameters[name] = rng.choice(
            [
                {"kind": "sizes", "halvings": 1, "one": True, "absent": True},
                {"kind": "int", "low": 0, "high": rng.randint(1, 3)},
                {"kind": "choice", "values": [0, 4], "when": {"kind": ["x", "y"]}, "otherwise": rng.choice([0, 4])},
            ]
        )
    modes = rng.sample(["top-k", "range", "bits"], rng.choice([1, 1, 2]))
    parameters["layers"] = {"kind": "layers", "modes": modes, "at_least": rng.randint(1, 2)}
    if rng.random() < 0.5:
        parameters["layers"] |= {"when": {"kind": rng.sample("xyz", 2)}, "otherwise": rng.choice(["all", "none"])}
    insertions = []
    for name in _SIZES[: rng.randint(1, 3)]:
        insertion = {
            "method": "bump",
            "layers": rng.choice(["$layers", "$layers", "all"]),
            "unless": {name: 0},
            "settings": {"size": f"${name}"},
        }
        if rng.random() < 0.5:
            insertion["part"] = rng.choice(PARTS[1:])
        if rng.random() < 0.4:
            insertion["when"] = {"kind": rng.sample("xyz", rng.randint(1, 2))}
        insertions.append(insertion)
    if rng.random() < 0.5:
        parameters["method"] = {"kind": "methods", "among": ["whole", "top", "bias"]}
        insertions = [{"method": "$method", "layers": "$layers", "when": {"kind": "z"}}, *insertions]
    written = {
        "name": "random",
        "summary": "For a test.",
        "parameters": parameters,
        "candidate": {"at_least": rng.randint(0, len(insertions)), "insertions": insertions, "learning_rate": 1e-3},
    }
    return SearchSpaceFile.model_validate(written)


class Free(type(METHODS["bump"])):
    """Claims nothing, so that every mix of a random space binds."""

    def __init__(self, rules):
        self.facts = rules.facts.__class__(**{**vars(rules.facts), "alone": False})

    def occupied(self, insertion, model):
        return frozenset()

    def problems(self, insertion, model):
        return []


FREE = {name: Free(rules) for name, rules in METHODS.items()}


def test_random_small_spaces_are_counted_as_trying_every_setting_counts_them():
    rng, counted, fewer = random.Random(3), 0, 0
    while counted < 100:
        file = random_space(rng)
        try:
            space = bind(file, MODEL, FREE)
        except UserError:  # no setting has as many insertions as are asked for
            continue
        every = list(itertools.islice(enumerate_values(space.parameters), 801))
        if len(every) > 800:
            continue
        counted += 1
        expected = sum(space.resolve(values) is not None for values in every)
        fewer += expected < len(every)
        assert space.size() == expected, file.model_dump_json(exclude_unset=True)
    assert fewer > 20, "too few of the spaces have settings that stand for nothing"


def bert(width, depth):
    return layout({role: (a * width // 384, b * width // 384) for role, (a, b) in BERT.items()}, depth)


@pytest.mark.parametrize(("width", "depth", "expected"), [(768, 12, 1330 * 4095), (1024, 24, 1330 * (2**24 - 1))])
def test_the_paper_s_space_has_as_many_configurations_as_the_paper_says(width, depth, expected):
    from autopeft.evaluate.methods import METHODS as REAL

    model = bert(width, depth)
    layers = tuple(one.model_copy(update={"attention": f"{one.path}.attention"}) for one in model.layers)
    space = bind(load_space("autopeft"), model.model_copy(update={"layers": layers, "head_dim": 64}), REAL)
    started = time.process_time()
    assert space.size() == expected
    print(f"{expected:,} counted in {time.process_time() - started:.3f} s")
    assert len(space.parameters) == 3 + depth
    assert expected == {12: 5_446_350, 24: 22_313_695_950}[depth]


def test_twelve_sizes_in_three_parts_are_counted_at_once():
    names = [f"s{part}{letter}" for part in (1, 2, 3) for letter in "abcd"]
    text = "name: wide\nsummary: s\nparameters:\n  layers: {kind: layers, modes: bits}\n"
    text += "".join(f"  {name}: {{kind: sizes, one: true, absent: true}}\n" for name in names)
    text += "candidate:\n  at_least: 1\n  learning_rate: 1e-3\n  insertions:\n"
    line = (
        "    - {{method: bump, layers: $layers, part: {part}/3, unless: {{{name}: 0}}, settings: {{size: ${name}}}}}\n"
    )
    text += "".join(line.format(name=name, part=name[1]) for name in names)
    space = bind(parse(text, "mine.yaml"), layout(BERT, 12, hidden_size=768), FREE)
    # Per part: 16 sets of layers and 11^4 sizes; nothing is put in where no layer is on, or all four sizes are 0.
    empty = 11**4 + 15
    assert space.size() == (16 * 11**4) ** 3 - empty**3


def test_without_a_new_head_a_setting_that_puts_in_nothing_is_no_candidate():
    text = SMALL.replace("modes: top-k", "modes: bits")
    off = {"rank": 1, "modules": "all-linear", **{f"layers.{index}": False for index in range(2)}}
    classifier = bind(parse(text, "mine.yaml"), layout(BERT, 2), METHODS)
    language = bind(parse(text, "mine.yaml"), layout(BERT, 2, task=TaskName.CAUSAL_LM, head_paths=()), METHODS)
    assert classifier.resolve(off).insertions == ()
    assert language.resolve(off) is None
    assert (classifier.size(), language.size()) == (3 * 2 * 4, 3 * 2 * 3)


def test_settings_that_are_counted_stand_for_different_candidates_in_the_paper_s_space():
    from autopeft.evaluate.methods import METHODS as REAL

    model = layout(BERT, 2, hidden_size=8, head_dim=32)
    layers = tuple(one.model_copy(update={"attention": f"{one.path}.attention"}) for one in model.layers)
    space = bind(load_space("autopeft"), model.model_copy(update={"layers": layers}), REAL)
    found = [space.resolve(values) for values in enumerate_values(space.parameters)]
    digests = {digest_of(one.model_dump(mode="json")) for one in found if one is not None}
    assert len(digests) == space.size() == (5**3 - 1) * 3
