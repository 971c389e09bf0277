"""Recipes: what is written is what is read, and mistakes are all named."""

import math

import pytest
import yaml

from autopeft.domain.errors import UserError
from autopeft.export.recipe import Recipe
from tests.contract.run_samples import record_of, trial_of


@pytest.fixture
def recipe():
    record = record_of(seed=5, training={"epochs": 0.1, "weight_decay": 1e-5, "rungs": [0.3, 1.0]})
    return Recipe.of(record, trial_of(3, test_quality={"accuracy": 0.7}))


def test_a_recipe_comes_back_as_it_was_saved(recipe, tmp_path):
    assert Recipe.load(recipe.save(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("value", [1e-05, 0.1 + 0.2, 5e-324, 1e22])
def test_floats_come_back_bit_for_bit(recipe, tmp_path, value):
    changed = recipe.model_copy(update={"candidate": recipe.candidate.model_copy(update={"learning_rate": value})})
    assert Recipe.load(changed.save(tmp_path / "r.yaml")).candidate.learning_rate == value


def test_a_diverged_trial_has_a_recipe_too(recipe, tmp_path):
    expected = recipe.expected.model_copy(update={"validation": {"accuracy": math.nan}})
    back = Recipe.load(recipe.model_copy(update={"expected": expected}).save(tmp_path / "r.yaml"))
    assert math.isnan(back.expected.validation["accuracy"])


@pytest.mark.parametrize("name", ["no", "1e5", "2020-01-01", "~", "a: b # c", "ünï 日本", "null"])
def test_names_that_yaml_could_misread_come_back(recipe, tmp_path, name):
    changed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"source": name})})
    assert Recipe.load(changed.save(tmp_path / "r.yaml")).model.source == name


def test_a_recipe_holds_what_training_needs(recipe):
    record, trial = record_of(seed=5, training={"epochs": 0.1, "weight_decay": 1e-5, "rungs": [0.3, 1.0]}), trial_of(3)
    spec = recipe.spec()
    assert (spec.model, spec.data, spec.training) == (record.spec.model, record.spec.data, record.spec.training)
    assert spec.seed == 5, "the sample of training rows is the search's"
    assert (recipe.seed, recipe.candidate) == (trial.seed, trial.candidate)
    assert recipe.expected.validation == trial.measurements.quality
    assert recipe.expected.first_losses == trial.measurements.first_losses
    assert recipe.expected.data_fingerprint == record.provenance.data_fingerprint


def test_every_mistake_is_named_at_once(recipe, tmp_path):
    path = recipe.save(tmp_path / "recipe.yaml")
    found = yaml.safe_load(path.read_text())
    found["training"]["epoks"] = 3
    found["training"]["batch_size"] = 0
    del found["candidate"]["learning_rate"]
    path.write_text(yaml.safe_dump(found))
    with pytest.raises(UserError) as error:
        Recipe.load(path)
    where = {problem.where for problem in error.value.problems}
    assert where == {f"{path}: {key}" for key in ("training.epoks", "training.batch_size", "candidate.learning_rate")}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("", "holds no keys"),
        ("- 1\n", "holds no keys"),
        ("a: 1\nb: 2: 3\nc: 3\n", r"r\.yaml:2: it is not YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not YAML"),
        (b"\xff\xfe\x00", "not text"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, told):
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told):
        Recipe.load(path)
