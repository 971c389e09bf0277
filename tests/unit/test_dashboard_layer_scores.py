"""The panel of layer importance: which trials it shows, what it draws, and that it is not there without scores."""

from __future__ import annotations

from dataclasses import replace

from autopeft.dashboards.layer_scores import layer_scores_figure, layer_scores_panel, layer_scores_record
from autopeft.dashboards.page import render

from autopeft.domain.candidate import Policy
from autopeft.domain.results import RunResults
from tests.unit import dashboard_runs as runs

SCORES = ((10, (0.5, -0.25, 0.0)), (20, (1.5, -1.0, 0.25)))


def scored(*numbers: int, nasty: str = "ist") -> RunResults:
    """A run in which these trials were scored."""
    results = runs.results()
    trials = []
    for one in results.trials:
        if one.trial.number in numbers and one.trial.measurements is not None:
            measured = one.trial.measurements.model_copy(update={"layer_scores": SCORES, "scored_layers": (2, 4, 5)})
            candidate = one.trial.candidate.model_copy(update={"policy": Policy(name=nasty)})
            trial = one.trial.model_copy(update={"measurements": measured, "candidate": candidate})
            trials.append(replace(one, trial=trial))
        else:
            trials.append(one)
    return replace(results, trials=tuple(trials))


def test_trials_of_the_front_come_first_and_scores_are_turned_to_one_row_per_layer() -> None:
    results = runs.results()
    front = results.front.members[0].trial.number
    on_front = {one.trial.number for one in results.front.members}
    beside = next(
        one.trial.number
        for one in results.trials
        if one.trial.number not in on_front and one.trial.measurements and one.trial.measurements.rungs
    )
    records = layer_scores_record(scored(front, beside))
    assert [one.trial for one in records] == [front, beside]
    assert [one.label for one in records] == [f"#{front} ist (front)", f"#{beside} ist"]
    assert records[0].steps == (10, 20)
    assert records[0].layers == (2, 4, 5)
    assert records[0].importance == ((0.5, 1.5), (-0.25, -1.0), (0.0, 0.25))
    (trace,) = layer_scores_figure(records[0]).data
    assert list(trace.y) == ["2", "4", "5"]
    assert list(trace.x) == ["10", "20"]


def test_the_colours_change_at_the_start_s_importance_and_one_view_names_its_trial() -> None:
    number = runs.results().front.members[0].trial.number
    panel = layer_scores_panel(scored(number))
    assert panel is not None
    (view,) = panel.views
    (trace,) = view.figure.data
    assert (trace.zmin, trace.zmax) == (-1.5, 1.5)
    assert trace.colorscale[1][0] == 0.5
    assert panel.caption.endswith(f"Trial #{number} ist (front).")
    assert view.narrow["layout.height"] > view.figure.layout.height, "the scale of the colours is above the map"
    still = replace(layer_scores_record(scored(number))[0], importance=((0.0, 0.0),))
    assert layer_scores_figure(still).data[0].zmax > 0


def test_without_scores_there_is_no_panel() -> None:
    assert layer_scores_panel(runs.results()) is None
    assert "layer-scores" not in render(runs.results())


def test_the_page_holds_a_view_per_trial_and_no_markup_of_a_trial() -> None:
    front = [one.trial.number for one in runs.results().front.members]
    page = render(scored(*front, nasty=runs.SCRIPT))
    assert 'id="figure-layer-scores"' in page
    assert runs.SCRIPT not in page
    panel = layer_scores_panel(scored(*front))
    assert panel is not None
    assert len(panel.views) == min(8, len(front))
