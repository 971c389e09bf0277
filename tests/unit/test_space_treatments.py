"""Pruning and training policy in a search space: what they become, and every way in which they do not fit."""

import pytest

from autopeft.domain.candidate import Policy, Pruning
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.search.encoding import enumerate_values
from autopeft.spaces import bind, describe, parse
from tests.unit.space_layouts import BERT_6, METHODS, SMALL


class Rules:
    """A treatment that refuses what `refuse` returns a problem for."""

    def __init__(self, name, settings, defaults, refuse=lambda candidate, layout: []):
        self.facts = TreatmentFacts(name, name.upper(), "", "", settings, defaults)
        self.problems = refuse


def no_bump(candidate, layout):
    return [
        Problem("policy", f"{one.method} has no output to damp", "lora")
        for one in candidate.insertions
        if one.method == "bump"
    ]


def too_deep(candidate, layout):
    ratio = candidate.pruning.settings["heads"]
    return [Problem("heads", f"{ratio} leaves no head", "less than 1")] if ratio >= 1 else []


POLICIES = {
    rules.facts.name: rules
    for rules in (
        Rules(
            "ist",
            {"interval": IntDomain(low=1, high=100), "trained": FloatDomain(low=0.01, high=1.0)},
            {"interval": 10, "trained": 0.25},
            no_bump,
        ),
        Rules("rst", {"trained": FloatDomain(low=0.01, high=1.0)}, {"trained": 0.25}),
    )
}
CRITERIA = {
    "magnitude": Rules(
        "magnitude",
        {"heads": FloatDomain(low=0.0, high=1.0), "scope": ChoiceDomain(values=("layer", "global"))},
        {"heads": 0.3, "scope": "layer"},
        too_deep,
    )
}
CHOICE = """\
  policy: {kind: choice, values: [all, ist, rst]}
  interval: {kind: choice, values: [5, 10], ordered: true, when: {policy: ist}}
  trained: {kind: choice, values: [0.25, 0.5], ordered: true, when: {policy: [ist, rst]}}
"""
TAKEN = "  policy:\n    name: $policy\n    settings: {interval: $interval, trained: $trained}\n"


def text(parameters="", candidate="", small=SMALL):
    return small.replace("candidate:\n", f"{parameters}candidate:\n") + candidate


def bound(written, policies=POLICIES, criteria=CRITERIA):
    return bind(parse(written, "mine.yaml"), BERT_6, METHODS, policies, criteria)


def misfits(written, **registries):
    with pytest.raises(UserError) as raised:
        bound(written, **registries)
    return [str(problem) for problem in raised.value.problems]


VALUES = {"rank": 4, "layers.k": 2, "modules": "attention-qv"}


def test_a_fixed_policy_gets_its_defaults_and_comes_into_every_candidate():
    space = bound(text(candidate="  policy: {name: ist, settings: {trained: 1}}\n"))
    candidate = space.resolve(VALUES)
    assert candidate.policy == Policy(name="ist", settings={"interval": 10, "trained": 1.0})
    assert candidate.pruning is None
    assert space.size() == bound(SMALL).size()


def test_a_candidate_without_treatments_keeps_the_digest_that_it_had():
    space = bound(text(CHOICE, TAKEN))
    assert space.resolve({**VALUES, "policy": "all"}).digest == bound(SMALL).resolve(VALUES).digest


def test_each_policy_of_a_choice_takes_the_settings_that_it_has():
    space = bound(text(CHOICE, TAKEN))
    ist = space.resolve({**VALUES, "policy": "ist", "interval": 5, "trained": 0.5})
    rst = space.resolve({**VALUES, "policy": "rst", "trained": 0.5})
    assert ist.policy == Policy(name="ist", settings={"interval": 5, "trained": 0.5})
    assert rst.policy == Policy(name="rst", settings={"trained": 0.5})
    assert space.size() == bound(SMALL).size() * (1 + 2 * 2 + 2)


def test_counting_agrees_with_going_through_all_settings():
    parameters = CHOICE + "  pruned: {kind: choice, values: [none, magnitude]}\n"
    pruning = "  pruning: {criterion: $pruned, unless: {policy: rst}}\n"
    space = bound(text(parameters, TAKEN + pruning))
    every = [space.resolve(values) for values in enumerate_values(space.parameters)]
    assert len(every) == space.size()
    assert all(one.pruning is None for one in every if one.policy and one.policy.name == "rst")
    assert any(one.pruning and one.policy is None for one in every)
    # Without pruning, `rst` trains the same whatever `pruned` is.
    assert len({one.digest for one in every}) == space.size() - bound(SMALL).size() * 2


def test_conditions_switch_a_treatment_off():
    pruning = "  pruning: {criterion: magnitude, when: {rank: [4]}, settings: {heads: 0.5}}\n"
    space = bound(text(candidate=pruning))
    assert space.resolve({**VALUES, "rank": 2}).pruning is None
    assert space.resolve(VALUES).pruning == Pruning(criterion="magnitude", settings={"heads": 0.5, "scope": "layer"})


def test_the_head_alone_has_no_policy():
    parameters = "  there: {kind: choice, values: [false, true]}\n"
    written = text(parameters, "  policy: {name: ist}\n").replace(
        "settings: {rank: $rank, alpha_ratio: 1, dropout: 0}",
        "settings: {rank: $rank, alpha_ratio: 1, dropout: 0}\n      when: {there: true}",
    )
    space = bound(written)
    assert space.resolve({**VALUES, "there": False}).policy is None
    assert space.resolve({**VALUES, "there": True}).policy is not None


def test_a_table_of_the_space_names_the_treatments():
    space = parse(text(CHOICE, TAKEN), "mine.yaml")
    for rows in (describe(space), describe(bound(text(CHOICE, TAKEN)))):
        row = next(row for row in rows if row.name == "candidate.policy")
        assert (row.values, row.summary) == ("$policy", "interval $interval, trained $trained")


LINE = SMALL.count("\n") + 1


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (
            "  policy: {name: its}\n",
            f"mine.yaml:{LINE}: candidate.policy.name: nothing is called 'its'; allowed: all, ist, rst. "
            "Did you mean 'ist'?",
        ),
        (
            "  pruning: {criterion: magnitud}\n",
            f"mine.yaml:{LINE}: candidate.pruning.criterion: nothing is called 'magnitud'; allowed: magnitude, none. "
            "Did you mean 'magnitude'?",
        ),
        (
            "  policy:\n    name: ist\n    settings: {treined: 0.5}\n",
            f"mine.yaml:{LINE + 2}: candidate.policy.settings.treined: nothing is called 'treined'; "
            "allowed: interval, trained. Did you mean 'trained'?",
        ),
        (
            "  policy:\n    name: ist\n    settings: {interval: 0}\n",
            f"mine.yaml:{LINE + 2}: candidate.policy.settings.interval: 0 is outside what 'interval' of ist takes; "
            "allowed: 1 to 100",
        ),
        (
            "  pruning:\n    criterion: magnitude\n    settings: {heads: 1.0}\n",
            f"mine.yaml:{LINE + 2}: candidate.pruning.settings.heads: 1.0 leaves no head; allowed: less than 1",
        ),
        (
            "  policy: {name: all, settings: {trained: 0.5}}\n",
            f"mine.yaml:{LINE}: candidate.policy.settings.trained: nothing is called 'trained'",
        ),
        (
            "  policy: {nome: ist}\n",
            f"mine.yaml:{LINE}: candidate.policy.nome: nothing is called 'nome'; allowed: name, settings, unless, "
            "when. Did you mean 'name'?",
        ),
        (
            "  policy: {name: $policy}\n",
            f"mine.yaml:{LINE}: candidate.policy.name: nothing is called 'policy'; allowed: layers, modules, rank",
        ),
        (
            "  policy: {name: $rank}\n",
            "mine.yaml:4: parameters.rank.values: 1 is no name of a policy. Quote it, or write `all` for none.",
        ),
        (
            "  policy: {name: ist, when: {layers: 1}}\n",
            f"mine.yaml:{LINE}: candidate.policy.when.layers: nothing is called 'layers'; allowed: modules, rank",
        ),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_is_allowed(candidate, expected):
    assert expected in misfits(text(candidate=candidate))


def test_a_choice_names_what_is_unknown_among_its_values():
    (problem,) = misfits(text("  policy: {kind: choice, values: [all, its]}\n", "  policy: {name: $policy}\n"))
    assert problem.startswith("mine.yaml:9: parameters.policy.values: nothing is called 'its'")


def test_the_extremes_of_a_parameter_are_tried():
    parameters = "  heads: {kind: float, low: 0.1, high: 1.0}\n"
    (problem,) = misfits(text(parameters, "  pruning: {criterion: magnitude, settings: {heads: $heads}}\n"))
    assert problem == "mine.yaml:9: parameters.heads: 1.0 leaves no head; allowed: less than 1"


def test_a_setting_must_have_a_value_wherever_its_policy_is():
    (problem,) = misfits(text(CHOICE.replace("when: {policy: [ist, rst]}", "when: {policy: [ist]}"), TAKEN))
    assert problem.startswith("mine.yaml:11: parameters.trained: 'trained' has no value in some candidates with rst")


def test_a_parameter_that_no_treatment_takes_is_unused():
    assert any(
        "nothing uses this parameter" in one for one in misfits(text("  trained: {kind: int, low: 1, high: 2}\n"))
    )


MIXED = """\
name: mixed
summary: For tests.
parameters:
  method: {kind: choice, values: [lora, bump]}
  policy: {kind: choice, values: [all, ist]WHEN}
candidate:
  insertions:
    - method: $method
  policy: {name: $policy}
  learning_rate: 1e-3
"""


def test_a_policy_that_a_method_cannot_take_is_refused_where_they_meet():
    written = MIXED.replace("WHEN", "")
    assert misfits(written) == ["mine.yaml:9: candidate.policy: bump has no output to damp; allowed: lora"]


def test_a_policy_that_never_meets_the_method_fits():
    space = bound(MIXED.replace("WHEN", ", when: {method: lora}, otherwise: all"))
    assert space.resolve({"method": "bump"}).policy is None
    assert space.resolve({"method": "lora", "policy": "ist"}).policy.name == "ist"
