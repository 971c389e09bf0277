"""What others bring is found by entry point, and what cannot be used says why."""

from importlib.metadata import EntryPoint

import pytest

from autopeft import plugins
from autopeft.domain.errors import UserError
from autopeft.domain.objective import Objective


def test_every_objective_of_the_project_loads_under_its_own_name():
    for name in plugins.names(plugins.OBJECTIVES):
        objective = plugins.load(plugins.OBJECTIVES, name, "objectives")
        assert isinstance(objective, Objective)
        assert objective.name == name
        assert objective.summary


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(UserError, match="Did you mean 'accuracy'") as caught:
        plugins.load(plugins.OBJECTIVES, "acuracy", "objectives")
    assert "train_peak_bytes" in caught.value.problems[0].allowed


def points(*values):
    return lambda group: [EntryPoint(name="mine", value=value, group=group) for value in values]


def test_two_plug_ins_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", points("a:x", "b:y"))
    with pytest.raises(UserError, match="brought twice: a:x and b:y"):
        plugins.names("any")


def test_the_same_plug_in_seen_twice_is_one(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", points("a:x", "a:x"))
    assert plugins.names("any") == ["mine"]


def test_a_plug_in_that_fails_to_import_is_named(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", points("no_such_module_here:x"))
    with pytest.raises(UserError, match="no_such_module_here"):
        plugins.load("any", "mine", "objectives")


def test_a_target_needs_a_colon():
    assert plugins.locate("math:sqrt")(4) == 2
    with pytest.raises(ValueError, match=r"package\.module:name"):
        plugins.locate("math.sqrt")
