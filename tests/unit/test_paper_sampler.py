"""The paper's sampler: outcomes, inputs, neighbours, climbs, surrogates and what it learns from."""

import math
import statistics
import subprocess
import sys
from itertools import product

import numpy as np
import optuna
import pytest

from autopeft.domain import pareto
from autopeft.domain.errors import UserError
from autopeft.domain.results import ScoredTrial
from autopeft.domain.trial import TrialStatus
from autopeft.search import SAMPLERS, make_sampler, samplers
from autopeft.search.front.views import SpaceView
from autopeft.search.paper import PaperSampler
from autopeft.search.paper.copula import normal_scores
from autopeft.search.paper.inputs import Inputs
from autopeft.search.paper.models import Map, NoisyImprovement, Nuts
from autopeft.search.paper.neighbours import climb, neighbours
from autopeft.search.paper.sampler import RECORDED, Effort
from autopeft.search.replay import Truth, replay
from tests.contract.sampler_contract import OBJECTIVES, conditional, grid_180, told
from tests.fakes.recorded import made_up_table

torch = pytest.importorskip("torch")
for package in ("botorch", "jax", "numpyro"):
    pytest.importorskip(package, reason="the extra botorch is not installed")

LITTLE = Effort(fit=Map(2), restarts=3, evaluations=90, draws=8)


@pytest.mark.parametrize("values", [[3.0, -1.0, 7.5, 7.5, 0.0, 100.0], list(np.random.default_rng(0).random(41))])
def test_outcomes_become_normal_quantiles_of_their_ranks(values):
    quantile, scores = statistics.NormalDist().inv_cdf, []
    for value in values:
        below = sum(other < value for other in values)
        equal = sum(other == value for other in values)
        scores.append(quantile((below + (equal + 1) / 2 - 0.5) / len(values)))
    spread = statistics.pstdev(scores)
    assert normal_scores(np.array(values)) == pytest.approx([score / spread for score in scores])


def test_only_the_order_of_outcomes_counts_and_equal_ones_say_nothing():
    values = np.random.default_rng(1).normal(size=30)
    assert normal_scores(np.exp(5 * values)) == pytest.approx(normal_scores(values))
    assert normal_scores(np.full(5, 3.0)).tolist() == [0.0] * 5


def test_every_parameter_has_a_place_and_every_choice_of_many_a_column():
    inputs = Inputs(SpaceView(conditional(), OBJECTIVES, None).distributions)
    assert inputs.names == ("length", "method", "rank", "rate")
    rows = inputs.rows([{"method": 0, "rank": 8, "rate": 1e-2}, {"method": 1, "length": 0, "rate": 1e-4}])
    assert rows[0] == pytest.approx([0.5, 0.0, 0.5, 1.0])
    assert rows[1] == pytest.approx([0.0, 1.0, 0.5, 0.0])
    many = Inputs(SpaceView(grid_180(), OBJECTIVES, None).distributions)
    assert many.rows([{"a": 2, "b": 0, "c": 1, "d": 3}])[0].tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0, 1]


def test_neighbours_differ_in_one_parameter_and_all_of_them_are_there():
    view, rng = SpaceView(grid_180(), OBJECTIVES, None), np.random.default_rng(0)
    own = {"a": 2, "b": 0, "c": 1, "d": 2}
    found = neighbours(view, view.point(own), rng)
    expected = [{**own, "a": value} for value in (0, 1, 3, 4)] + [{**own, "b": 1}]
    expected += [{**own, "c": value} for value in (0, 2)] + [{**own, "d": value} for value in (1, 3)]
    assert sorted(map(repr, (sorted(one.params.items()) for one in found))) == sorted(
        map(repr, (sorted(one.items()) for one in expected))
    )


def test_what_depends_on_an_exchanged_parameter_comes_and_goes_with_it():
    view, rng = SpaceView(conditional(), OBJECTIVES, None), np.random.default_rng(0)
    found = neighbours(view, view.point({"method": 0, "rank": 8, "rate": 1e-3}), rng)
    other = [one for one in found if one.params["method"] == 1]
    assert len(other) == 1
    assert set(other[0].params) == {"method", "length", "rate"}
    assert other[0].params["rate"] == 1e-3
    rest = [one for one in found if one.params["method"] == 0]
    assert {sum(one.params[name] != {"rank": 8, "rate": 1e-3}[name] for name in ("rank", "rate")) for one in rest} == {
        1
    }


def height(point):
    """One peak, at a=3, b=2, c=0, d=1; coordinates are separate, so that every neighbour towards it is better."""
    peak = {"a": (3, 2.0), "b": (2, 1.0), "c": (0, 1.5), "d": (1, 0.5)}
    away = 0.0
    for name, (best, weight) in peak.items():
        off = point.params[name] - best
        away += weight * (abs(off) if name in ("b", "d") else float(off != 0))
    return -away


def test_every_climb_reaches_the_peak_and_looks_at_no_point_twice():
    view, rng, asked = SpaceView(grid_180(), OBJECTIVES, None), np.random.default_rng(0), []

    def worth(points):
        asked.extend(one.key for one in points)
        return np.array([height(one) for one in points])

    starts = [view.point(params) for params in ({"a": 0, "b": 0, "c": 2, "d": 3}, {"a": 4, "b": 3, "c": 1, "d": 1})]
    found = climb(starts, lambda point: neighbours(view, point, rng), worth, 1000)
    assert [one.start for one in found] == starts
    assert [dict(one.end.params) for one in found] == [{"a": 3, "b": 2, "c": 0, "d": 1}] * 2
    assert [one.worth for one in found] == [0.0, 0.0]
    assert len(asked) == len(set(asked)) < 180
    asked.clear()
    short = climb(starts, lambda point: neighbours(view, point, rng), worth, 12)
    assert len(asked) == 12
    assert all(height(one.start) <= one.worth <= 0 for one in short)


def ten_inputs(count=30):
    """One of ten inputs matters."""
    rng = np.random.default_rng(0)
    rows = rng.random((count, 10))
    targets = np.sin(6 * rows[:, 3]) + 0.05 * rng.normal(size=count)
    return rows, (targets - targets.mean()) / targets.std()


@pytest.mark.slow
@pytest.mark.parametrize("fit", [Nuts(warmup=64, samples=32, thinning=4), Map()], ids=["nuts", "map"])
def test_the_one_input_of_ten_that_matters_is_found(fit):
    rows, targets = ten_inputs()
    model = fit(rows, targets, 1)
    kernel = model.covar_module
    lengths = getattr(kernel, "base_kernel", kernel).lengthscale.detach().reshape(-1, 10).median(0).values.numpy()
    print(np.round(lengths, 2))
    assert int(np.argmin(lengths)) == 3
    assert np.delete(lengths, 3).min() > 4 * lengths[3]
    grid = np.tile(rows[:1], (50, 1))
    grid[:, 3] = np.linspace(0.05, 0.95, 50)
    with torch.no_grad():
        posterior = model.posterior(torch.tensor(grid))
    mean = getattr(posterior, "mixture_mean", posterior.mean).squeeze().numpy()
    assert np.corrcoef(mean, np.sin(6 * grid[:, 3]))[0, 1] > 0.98


@pytest.mark.slow
def test_filling_up_adds_a_constant_to_the_density_that_botorch_samples():
    import jax.numpy as jnp
    from botorch.models.fully_bayesian import SaasPyroModel
    from numpyro.infer.util import log_density

    from autopeft.search.paper.nuts import Padded

    rows, targets = ten_inputs(12)
    plain = SaasPyroModel()
    plain.set_inputs(torch.tensor(rows), torch.tensor(targets[:, None]))
    there = np.array([1.0] * 12 + [0.0] * 4)
    padded = Padded(
        jnp.array(np.vstack([rows, np.zeros((4, 10))])), jnp.array(np.append(targets, np.zeros(4))), jnp.array(there)
    )
    gaps, rng = [], np.random.default_rng(0)
    for _ in range(4):
        draw = {
            "outputscale": jnp.array(rng.gamma(2.0, 1.0)),
            "mean": jnp.array(rng.normal()),
            "noise": jnp.array(rng.gamma(1.0, 0.1)),
            "kernel_tausq": jnp.array(rng.gamma(1.0, 0.1)),
            "_kernel_inv_length_sq": jnp.array(rng.gamma(1.0, 1.0, 10)),
        }
        gaps.append(
            float(log_density(padded.sample, (), {}, draw)[0]) - float(log_density(plain.sample, (), {}, draw)[0])
        )
    assert gaps == pytest.approx([gaps[0]] * 4, abs=2e-3)


@pytest.mark.slow
def test_the_improvement_is_the_mean_over_draws_of_a_front_that_nobody_knows():
    """Against draws of the whole mixture and hypervolumes by sweeping, pending points included."""
    rng = np.random.default_rng(0)
    rows = rng.random((7, 2))
    outcomes = np.column_stack([np.sin(3 * rows[:, 0]), -rows[:, 0] + 0.3 * rows[:, 1]]) + 0.2 * rng.normal(size=(7, 2))
    models = [Map(2)(rows, normal_scores(column), 0) for column in outcomes.T]
    reference = np.array([-2.0, -2.0])
    worth = NoisyImprovement(models, rows, reference, 512, 0)
    asked, pending = np.array([[0.1, 0.9], [0.6, 0.5], [0.95, 0.1]]), np.array([[0.6, 0.45]])

    def simulated(point, waiting):
        together, gains = torch.tensor(np.vstack([rows, waiting, point[None]])), []
        with torch.no_grad():
            torch.manual_seed(0)
            drawn = torch.cat([model.posterior(together).rsample(torch.Size([800])) for model in models], dim=-1)
        for one in -drawn.reshape(-1, len(together), 2).numpy():
            before = pareto.hypervolume(one[:-1], -reference)
            gains.append(pareto.hypervolume(one, -reference) - before)
        return np.mean(gains)

    assert worth(asked) == pytest.approx([simulated(point, np.zeros((0, 2))) for point in asked], rel=0.1, abs=0.01)
    worth.wait_for(pending)
    assert worth(asked) == pytest.approx([simulated(point, pending) for point in asked], rel=0.1, abs=0.01)


class Watched:
    """A fit that notes what it is shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, rows, targets, seed):
        self.seen.append((rows, targets))
        return Map(2)(rows, targets, seed)


def searched(effort, trials=15, space=None, **more):
    one = make_sampler("autopeft-map", space or grid_180(), OBJECTIVES, 0, startup_trials=6, effort=effort, **more)
    history = []
    for number in range(trials):
        proposal = one.ask(number)
        history.append(told(number, proposal))
        one.tell(history[-1])
    return history


def test_four_proposals_come_of_one_fit_and_what_is_learned_is_what_was_trained():
    watched = Watched()
    history = searched(Effort(fit=watched, restarts=3, evaluations=60, draws=8))
    assert [len(rows) for rows, _ in watched.seen] == [6, 6, 10, 10, 14, 14]
    view = SpaceView(grid_180(), OBJECTIVES, None)
    from autopeft.search.encoding import encode

    own = [encode(grid_180().parameters, one.trial.parameters)[0] for one in history]
    for rows, _ in watched.seen:
        assert rows == pytest.approx(Inputs(view.distributions).rows(own[: len(rows)]))
    assert not any(RECORDED in one.trial.sampler_state for one in history)
    # Objectives are maximised: more quality and fewer bytes are more.
    quality = [one.values[0] for one in history[:6]]
    assert watched.seen[0][1] == pytest.approx(normal_scores(np.array(quality)))
    assert watched.seen[1][1] == pytest.approx(normal_scores(-np.array([one.values[1] for one in history[:6]])))


def test_the_switch_of_the_published_code_trains_one_thing_and_learns_another():
    watched = Watched()
    history = searched(Effort(fit=watched, restarts=3, evaluations=60, draws=8, as_published=True))
    view = SpaceView(grid_180(), OBJECTIVES, None)
    from autopeft.search.encoding import encode

    own = [encode(grid_180().parameters, one.trial.parameters)[0] for one in history]
    recorded = [one.trial.sampler_state.get(RECORDED, mine) for one, mine in zip(history, own, strict=True)]
    different = [number for number in range(6, 15) if recorded[number] != own[number]]
    assert len(different) >= 6
    inputs = Inputs(view.distributions)
    assert watched.seen[-1][0] == pytest.approx(inputs.rows(recorded[:14]))
    assert not np.allclose(watched.seen[-1][0], inputs.rows(own[:14]))


def test_no_search_can_have_the_mistake_of_the_published_code():
    assert not any("published" in name for name in SAMPLERS)
    assert not any(effort.as_published for effort in samplers.PAPER.values())
    with pytest.raises(UserError, match="nothing is called 'autopeft-as-published'"):
        make_sampler("autopeft-as-published", grid_180(), OBJECTIVES, 0)


@pytest.mark.parametrize("ending", ["", "-as-published"])
def test_a_replay_on_a_table_visits_every_configuration_once_and_is_the_same_every_time(monkeypatch, ending):
    table = Truth(made_up_table(20))
    monkeypatch.setitem(samplers.PAPER, "autopeft-map", LITTLE)
    first, again = (replay(table, "autopeft-map" + ending, 1, workers=2) for _ in range(2))
    assert first.moments[-1].trials == 20
    assert first.moments == again.moments
    assert first.moments[-1].share == pytest.approx(1.0)


def test_failed_trials_teach_nothing_and_infeasible_ones_are_kept_away_from():
    watched = Watched()
    one = make_sampler(
        "autopeft-map",
        grid_180(),
        OBJECTIVES,
        0,
        startup_trials=6,
        effort=Effort(fit=watched, restarts=3, evaluations=60, draws=8),
    )
    endings = [TrialStatus.COMPLETE, TrialStatus.CRASHED, TrialStatus.INFEASIBLE, TrialStatus.COMPLETE]
    for number in range(14):
        one.tell(told(number, one.ask(number), endings[number % 4]))
    assert watched.seen
    assert {len(rows) for rows, _ in watched.seen} <= {6, 7}


def test_it_is_refused_by_name_of_the_extra_where_botorch_is_missing(monkeypatch):
    monkeypatch.setattr(samplers, "missing", lambda packages: ["botorch", "numpyro"])
    for name in ("autopeft", "autopeft-map"):
        with pytest.raises(UserError, match=r"needs botorch, numpyro, not installed.*autopeft\[botorch\]"):
            make_sampler(name, grid_180(), OBJECTIVES, 0)


def test_the_search_is_imported_without_torch_botorch_and_jax():
    code = "import sys, autopeft.search; print([n for n in ('torch', 'botorch', 'jax') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_it_works_in_a_plain_optuna_study_with_conditional_parameters():
    def objective(trial):
        kind = trial.suggest_categorical("kind", ["lora", "prefix"])
        rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
        size = trial.suggest_int("rank", 1, 64, log=True) if kind == "lora" else trial.suggest_int("length", 4, 16)
        return 0.05 * math.log2(size) - 0.3 * (math.log10(rate) + 3) ** 2, float(size)

    found = []
    for _ in range(2):
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=PaperSampler(seed=4, startup=8, effort=LITTLE)
        )
        study.optimize(objective, n_trials=16)
        found.append([one.params for one in study.trials])
    assert found[0] == found[1]
    rates = [abs(math.log10(one["rate"]) + 3) for one in found[0]]
    assert np.mean(rates[8:]) < np.mean(rates[:8])


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize", "minimize"]])
def test_one_objective_and_three_do_too(directions):
    study = optuna.create_study(directions=directions, sampler=PaperSampler(seed=0, startup=5, effort=LITTLE))

    def objective(trial):
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_int("y", 0, 9)
        return [(x - 0.3) ** 2 + 0.1 * abs(y - 5), x, y][: len(directions)]

    study.optimize(objective, n_trials=9)
    best = min(abs(one.params["x"] - 0.3) + 0.1 * abs(one.params["y"] - 5) for one in study.trials)
    assert len({tuple(one.params.values()) for one in study.trials}) == 9
    assert best < 0.5


@pytest.mark.slow
def test_it_finds_nearly_all_of_a_front_of_which_random_draws_find_four_fifths():
    effects = {"p": 0.0, "q": 0.3, "r": 0.1, "s": 0.6, "t": 0.2}, {False: 0.0, True: 0.3, "maybe": 0.1}
    effort = Effort(fit=Map(2), restarts=4, evaluations=200, draws=16)

    def losses(point):
        quality = effects[0][point["a"]] + 0.25 * np.log2(point["b"]) + effects[1][point["c"]]
        return np.array([-quality, np.log(point["b"] * point["d"] + (8 if point["a"] == "s" else 2))])

    values = product(effects[0], (1, 2, 4, 8), effects[1], (1, 2, 3))
    whole = np.array([losses(dict(zip("abcd", one, strict=True))) for one in values])
    corner = whole.max(axis=0)

    def share(name, seed):
        """Of the hypervolume of all 180 points, after 22 trials whose quality is observed with noise."""
        rng = np.random.default_rng(seed)
        one = make_sampler(name, grid_180(), OBJECTIVES, seed, effort=effort)
        found = []
        for number in range(22):
            proposal = one.ask(number)
            found.append(losses(proposal.parameters))
            quality, size = found[-1] + (0.03 * rng.standard_normal(), 0.0)
            one.tell(ScoredTrial(told(number, proposal).trial, (-quality, float(np.exp(size)))))
        return pareto.hypervolume(np.array(found), corner) / pareto.hypervolume(whole, corner)

    mine, other = ([share(name, seed) for seed in range(2)] for name in ("autopeft-map", "random"))
    print(np.round([mine, other], 3))
    assert min(mine) > 0.95
    assert max(other) < 0.9
