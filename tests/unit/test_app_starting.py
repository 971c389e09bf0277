"""Searches that begin with earlier fronts, a person's own candidates and first guesses: through `search` itself."""

import json
import shutil
import signal
from dataclasses import replace
from functools import partial

import pytest
import yaml

from autopeft.app import searching
from autopeft.app.folder import RunFolder
from autopeft.app.results import load_results, open_run
from autopeft.app.searching import search
from autopeft.domain.budget import Budget
from autopeft.domain.errors import UserError
from autopeft.domain.events import Notice
from autopeft.domain.ports import EvaluatorRef
from autopeft.domain.spec import ResourceSpec, SearchSpec
from autopeft.evaluate.methods import METHODS
from autopeft.spaces import bind, load_space
from autopeft.spaces.reading import parse
from tests.fakes import run_app_search
from tests.fakes.evaluators import FakeEvaluator
from tests.fakes.handmade import handmade_layout

GUESSES = 3
"""First guesses of the space `lora`."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """What a search writes when it ends is not looked at here, and takes a second."""
    monkeypatch.setattr(searching, "write_results", lambda *arguments: {})
    monkeypatch.setattr(searching, "load_results", lambda opened, with_importance: load_results(opened))


class Once(FakeEvaluator):
    """Gets Ctrl-C at one trial, once."""

    left: set[int] = set()

    def evaluate(self, tasks):
        if tasks[0].number in self.left:
            self.left.discard(tasks[0].number)
            signal.raise_signal(signal.SIGINT)
        return (yield from super().evaluate(tasks))


def build(faults=None):
    return Once(faults or {}, 0.0, 1, None)


def reference(faults=None):
    return EvaluatorRef(target="tests.unit.test_app_starting:build", arguments={"faults": faults or {}})


def plan(spec, depth=6, space=None):
    found = run_app_search.plan(spec)
    layout = handmade_layout()
    layers = tuple(
        layout.layers[0].model_copy(
            update={
                "index": index,
                "path": f"layers.{index}",
                "modules": tuple(
                    one.model_copy(update={"path": f"layers.{index}.{one.path.rpartition('.')[2]}_proj"})
                    for one in layout.layers[0].modules
                ),
            }
        )
        for index in range(depth)
    )
    layout = layout.model_copy(update={"layers": layers})
    file = load_space(spec.space) if space is None else parse(space, "mine.yaml")
    return replace(found, inspection=replace(found.inspection, layout=layout), space=bind(file, layout, METHODS))


def run(tmp_path, name, trials=6, faults=None, depth=6, space=None, told=None, **said):
    spec = SearchSpec(
        name=name,
        objectives=("accuracy", "train_peak_bytes"),
        budget=Budget(trials=trials),
        resources=ResourceSpec(runner="local"),
        **{"space": "lora", "sampler": "random", **said},
    )
    notices = told if told is not None else []
    return search(
        spec,
        tmp_path,
        on_event=lambda event: notices.append(event.text) if isinstance(event, Notice) else None,
        evaluator=reference(faults),
        plan=partial(plan, depth=depth, space=space),
    )


def trials(tmp_path, name):
    with open_run(RunFolder(tmp_path / name), None) as store:
        return store.open(name).trials()


def origins(tmp_path, name):
    return [trial.origin for trial in trials(tmp_path, name)]


def front(result):
    return {one.trial.digest for one in result.results.front.members}


def test_guesses_are_tried_first_in_a_third_of_the_budget_and_can_be_turned_off(tmp_path):
    told = []
    run(tmp_path, "a", trials=6, told=told)
    assert origins(tmp_path, "a") == ["first guess"] * 2 + ["sampler"] * 4
    assert "Tried first: 2 (first guess); 1 more would take more than a third of the budget." in told
    run(tmp_path, "b", trials=12)
    assert origins(tmp_path, "b")[:4] == ["first guess"] * GUESSES + ["sampler"]
    run(tmp_path, "c", trials=2)
    assert origins(tmp_path, "c") == ["sampler"] * 2
    run(tmp_path, "d", trials=6, first_guesses=False)
    assert origins(tmp_path, "d") == ["sampler"] * 6


def test_the_front_of_an_earlier_run_comes_first_and_guesses_fill_the_share(tmp_path):
    before = run(tmp_path, "old", trials=9)
    told = []
    run(tmp_path, "new", trials=9, sampler="front", warm_start=("old",), told=told)
    found = trials(tmp_path, "new")
    taken = [trial for trial in found if trial.origin == "warm start of old"]
    assert {trial.digest for trial in taken} <= front(before)
    assert len(taken) == min(3, len(front(before)))
    guessed = [trial for trial in found if trial.origin == "first guess"]
    assert [trial.number for trial in [*taken, *guessed]] == list(range(len(taken) + len(guessed)))
    assert 2 <= len(taken) + len(guessed) <= 3
    assert any("warm start of old" in text for text in told)
    start = RunFolder(tmp_path / "new").load_start()
    assert [len(one.trials) for one in start.earlier] == [9]
    assert start.earlier[0].maximised
    # Other samplers are not told what the earlier trials saw.
    run(tmp_path, "plain", trials=3, sampler="tpe", warm_start=("old",))
    assert RunFolder(tmp_path / "plain").load_start().earlier == ()


def test_a_deeper_model_gets_the_front_by_relative_depth(tmp_path):
    before = run(tmp_path, "old", trials=9)
    run(tmp_path, "deep", trials=27, depth=12, warm_start=("old",), first_guesses=False)
    taken = [trial for trial in trials(tmp_path, "deep") if trial.origin == "warm start of old"]
    assert taken
    there = {(len(one.trial.candidate.layers()), one.trial.parameters["rank"]) for one in before.results.front.members}
    expected = {(1 if count == 1 else 2 * count, rank) for count, rank in there}
    assert {(len(trial.candidate.layers()), trial.parameters["rank"]) for trial in taken} == expected


def test_an_interrupted_search_goes_on_with_the_points_it_was_given(tmp_path):
    run(tmp_path, "old", trials=8)
    for name, at in (("calm", set()), ("killed", {1, 3})):
        Once.left = set(at)
        result = run(tmp_path, name, trials=8, sampler="front", warm_start=("old",))
        while result.interrupted:
            # What it was given is settled, whatever happens to where it came from.
            shutil.rmtree(tmp_path / "old", ignore_errors=True)
            result = run(tmp_path, name, trials=8, sampler="front", warm_start=("old",))
        if name == "calm":
            continue
        assert not (tmp_path / "old").exists()
    first, second = ([(one.digest, one.origin) for one in trials(tmp_path, name)] for name in ("calm", "killed"))
    assert first == second
    assert len(first) == 8


def test_runs_that_cannot_teach_are_mistakes(tmp_path):
    run(tmp_path, "old", trials=2)
    with pytest.raises(UserError, match=r"warm_start: nothing is called 'odl'; allowed: old.*Did you mean 'old'"):
        run(tmp_path, "new", warm_start=("odl",))
    run(tmp_path, "broken", trials=2, faults={"0": "nan", "1": "nan"}, max_failure_share=1.0)
    with pytest.raises(UserError, match="warm_start: no trial of the run 'broken' completed"):
        run(tmp_path, "new", warm_start=("broken", "old"))
    with pytest.raises(UserError, match="nothing is called 'self'"):
        run(tmp_path, "self", warm_start=("self",))
    with pytest.raises(ValueError, match="warm_start names one twice"):
        SearchSpec(warm_start="old,old")


def test_mistakes_leave_no_folder_behind(tmp_path):
    run(tmp_path, "old", trials=2)
    with pytest.raises(UserError):
        run(tmp_path, "new", warm_start=("odl",), start_with=(str(tmp_path / "none.yaml"),))
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_not_finished_is_taken_as_it_is_and_said(tmp_path):
    Once.left = {4}
    assert run(tmp_path, "old", trials=12).interrupted
    told = []
    run(tmp_path, "new", trials=6, warm_start=("old",), told=told)
    assert "The run old is not finished: its 4 trials so far are taken." in told
    assert origins(tmp_path, "new")[0] == "warm start of old"


OTHER = """
name: other
summary: For a test.
parameters:
  size: {kind: int, low: 1, high: 64}
  layers: {kind: layers, modes: bits}
candidate:
  at_least: 1
  insertions:
    - {method: METHOD, layers: $layers, modules: MODULES, settings: {rank: $size}}
  learning_rate: 1.0e-3
"""


def test_a_run_of_another_space_gives_what_this_one_can_express(tmp_path):
    told = []
    lora = OTHER.replace("METHOD", "lora").replace("MODULES", "all")
    before = run(tmp_path, "bits", trials=12, space=lora)
    run(tmp_path, "new", trials=30, warm_start=("bits",), first_guesses=False, told=told)
    taken = [trial.candidate for trial in trials(tmp_path, "new") if trial.origin == "warm start of bits"]
    top = {
        one.trial.candidate.layers()
        for one in before.results.front.members
        if one.trial.candidate.layers()[-1] == 5
        and len(one.trial.candidate.layers()) == 6 - one.trial.candidate.layers()[0]
    }
    assert {one.layers() for one in taken} == top
    assert all(one.insertions[0].settings["rank"] in (1, 2, 4, 8, 16, 32, 64) for one in taken)
    assert any("is left out: layers: layers" in text for text in told)
    miss = OTHER.replace("METHOD", "miss").replace("MODULES", "all")
    run(tmp_path, "miss", trials=4, space=miss)
    told.clear()
    run(tmp_path, "newer", trials=3, warm_start=("miss",), first_guesses=False, told=told)
    assert "No point of the front of miss is a candidate of this space." in told
    assert any("miss is none of its methods; allowed: dora, lora, pissa, rslora" in text for text in told)
    assert origins(tmp_path, "newer") == ["sampler"] * 3


def candidate(tmp_path, name="candidate.yaml", rate=1e-3, **insertion):
    path = tmp_path / name
    said = {"insertions": [{"method": "lora", "settings": {"rank": 4}, **insertion}]}
    path.write_text(yaml.safe_dump(said | ({} if rate is None else {"learning_rate": rate})))
    return str(path)


def test_a_persons_own_candidates_come_before_everything_however_small_the_budget(tmp_path):
    run(tmp_path, "old", trials=6)
    one, two = candidate(tmp_path, "one.yaml"), candidate(tmp_path, "two.yaml", layers=[4, 5])
    run(tmp_path, "new", trials=4, start_with=(two, one), warm_start=("old",))
    found = trials(tmp_path, "new")
    assert [trial.origin for trial in found] == ["start-with", "start-with", "warm start of old", "sampler"]
    assert [trial.candidate.layers() for trial in found[:2]] == [(4, 5), tuple(range(6))]
    assert {trial.candidate.insertions[0].settings["rank"] for trial in found[:2]} == {4}


def test_what_the_space_has_not_is_said_for_all_files_at_once(tmp_path):
    rank = candidate(tmp_path, "rank.yaml", settings={"rank": 5})
    layers = candidate(tmp_path, "layers.yaml", layers=[0])
    rate = candidate(tmp_path, "rate.yaml", rate=0.5)
    with pytest.raises(UserError) as found:
        run(tmp_path, "new", start_with=(rank, layers, rate))
    text = str(found.value)
    assert "rank.yaml: rank: rank is 5, which the space 'lora' has not; allowed: 1, 2, 4, 8, 16, 32, 64" in text
    assert "layers.yaml: layers: layers 0 of lora cannot be chosen; allowed: the last k layers" in text
    assert "rate.yaml: learning_rate: learning_rate is 0.5" in text
    assert len(found.value.problems) == 3


def test_what_a_file_leaves_open_is_as_the_space_has_it(tmp_path):
    told = []
    run(tmp_path, "new", trials=2, start_with=(candidate(tmp_path, rate=None),), told=told)
    (first, _) = trials(tmp_path, "new")
    assert first.candidate.learning_rate == pytest.approx(1e-3)
    assert any("says no learning rate: 0.001 is taken" in text for text in told)


def peft_file(tmp_path, **changes):
    said = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["query_proj", "value_proj"], **changes}
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(said))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "method", "layers"),
    [
        ({}, "lora", range(6)),
        ({"use_rslora": True, "layers_to_transform": [3, 4, 5]}, "rslora", range(3, 6)),
        ({"init_lora_weights": "pissa", "lora_alpha": 8}, "pissa", range(6)),
        ({"target_modules": r"layers\.[45]\.(query|value)_proj"}, "lora", range(4, 6)),
    ],
)
def test_a_configuration_of_peft_is_a_candidate(tmp_path, changes, method, layers):
    run(tmp_path, "new", trials=1, start_with=(peft_file(tmp_path, **changes),))
    (trial,) = trials(tmp_path, "new")
    (one,) = trial.candidate.insertions
    assert (one.method, one.layers, one.settings["rank"]) == (method, tuple(layers), 8)
    assert one.modules == ("attention.query", "attention.value")
    assert one.settings["alpha_ratio"] == (1.0 if method == "pissa" else 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: it is IA3; allowed: LORA"),
        ({"rank_pattern": {"q": 4}}, "rank_pattern: a candidate cannot say it"),
        ({"target_modules": ["q_lin"]}, r"no layer of the model has \['q_lin'\]; allowed: query_proj"),
        ({"bias": "all"}, "bias: it is all; allowed: none"),
        ({"r": 7}, r"rank: rank is 7, which the space 'lora' has not"),
    ],
)
def test_a_configuration_that_is_no_candidate_says_why(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, "new", start_with=(peft_file(tmp_path, **changes),))


def test_a_run_older_than_starts_goes_on_without_one(tmp_path):
    Once.left = {3}
    assert run(tmp_path, "old", trials=6, first_guesses=True).interrupted
    (tmp_path / "old" / "start.json").unlink()
    run(tmp_path, "old", trials=6)
    assert len(trials(tmp_path, "old")) == 6


def test_specs_without_starts_keep_their_digest():
    plain = SearchSpec()
    assert SearchSpec(warm_start=(), start_with=(), first_guesses=True).digest == plain.digest
    different = {SearchSpec(warm_start="a").digest, SearchSpec(first_guesses=False).digest, plain.digest}
    assert len(different) == 3
    assert SearchSpec(warm_start="a, b").warm_start == ("a", "b")
