"""Expected hypervolume improvement in closed form, against simulation, plain expected improvement and geometry."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import qmc

from autopeft.domain.pareto import hypervolume
from autopeft.search.front.acquisition import boxes, expected_hypervolume_improvement, expected_improvement


def simulated(mean, sd, front, reference):
    """Mean improvement over draws from the belief (quasi-random ones); by the staircase, without boxes."""
    draws = ndtri(qmc.Sobol(2, seed=0).random(2**18))
    f, c = (mean[axis] + sd[axis] * draws[:, axis] for axis in (0, 1))
    inside = front[np.all(front < reference, axis=1)]
    edges = np.unique(np.concatenate([inside[:, 1], [reference[1]]]))
    gained = np.maximum(0, np.minimum(edges[0], reference[1]) - c) * np.maximum(0, reference[0] - f)
    for low, high in itertools.pairwise(edges):
        level = inside[inside[:, 1] <= low, 0].min()
        gained += np.maximum(0, high - np.maximum(low, c)) * np.maximum(0, level - f)
    return gained.mean()


@pytest.mark.parametrize("cost_sd", [0.0, 0.15])
@pytest.mark.parametrize("mean", [(0.3, 0.2), (0.55, 0.5), (0.9, 0.05), (0.2, 0.95)])
def test_the_closed_form_is_the_mean_of_simulated_improvements_to_three_digits(mean, cost_sd):
    front = np.array([[0.8, 0.1], [0.5, 0.4], [0.45, 0.6], [0.2, 0.9], [0.7, 0.7]])
    reference = np.array([1.0, 1.0])
    found = expected_hypervolume_improvement(np.array([mean]), np.array([(0.2, cost_sd)]), boxes(front, reference))[0]
    assert found == pytest.approx(simulated(mean, (0.2, cost_sd), front, reference), rel=5e-4)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_without_uncertainty_it_is_the_hypervolume_that_the_point_adds(objectives):
    rng = np.random.default_rng(objectives)
    front, reference = rng.random((9, objectives)), np.full(objectives, 1.1)
    points = rng.random((40, objectives))
    found = expected_hypervolume_improvement(points, np.zeros_like(points), boxes(front, reference))
    before = hypervolume(front, reference)
    added = [hypervolume(np.vstack([front, point]), reference) - before for point in points]
    assert found == pytest.approx(added, abs=1e-12)
    assert max(added) > 0
    assert min(added) == 0


@pytest.mark.parametrize("objectives", [3, 4])
def test_three_and_more_objectives_agree_with_simulated_hypervolumes(objectives):
    rng = np.random.default_rng(1)
    front, reference = rng.random((6, objectives)), np.full(objectives, 1.1)
    mean, sd = rng.random(objectives) * 0.6, np.array([0.2, *[0.0] * (objectives - 1)])
    found = expected_hypervolume_improvement(mean[None], sd[None], boxes(front, reference))[0]
    # The improvement is a piecewise linear function of the one uncertain objective: integrate it on a fine grid.
    grid = np.linspace(-6, 6, 601)
    before = hypervolume(front, reference)
    gains = [hypervolume(np.vstack([front, mean + sd * z]), reference) - before for z in grid]
    density = np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    assert found == pytest.approx(float(np.trapezoid(np.array(gains) * density, grid)), rel=1e-3)


def test_one_objective_is_plain_expected_improvement():
    front = np.array([[0.4], [0.7], [0.35]])
    mean, sd = np.array([[0.3], [0.5]]), np.array([[0.1], [0.2]])
    found = expected_hypervolume_improvement(mean, sd, boxes(front, np.array([1.0])))
    by_hand = []
    for m, s in ((0.3, 0.1), (0.5, 0.2)):
        z = (0.35 - m) / s
        density, share = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
        by_hand.append(s * (z * share + density))
    assert found == pytest.approx(by_hand, rel=1e-12)


def test_certain_improvement_is_the_difference_and_never_negative():
    assert expected_improvement(np.array([0.5, 0.5]), np.array([0.2, 0.8]), np.zeros(2)).tolist() == [0.3, 0.0]


def test_other_units_change_all_worths_by_one_factor():
    rng = np.random.default_rng(2)
    front, mean, sd = rng.random((7, 2)), rng.random((30, 2)), np.column_stack([np.full(30, 0.1), np.zeros(30)])
    reference, scale, shift = np.array([1.2, 1.3]), np.array([250.0, 4e9]), np.array([-3.0, 7e9])
    plain = expected_hypervolume_improvement(mean, sd, boxes(front, reference))
    moved = expected_hypervolume_improvement(
        mean * scale + shift, sd * scale, boxes(front * scale + shift, reference * scale + shift)
    )
    assert moved == pytest.approx(plain * scale.prod(), rel=1e-6)


def test_duplicates_ties_and_dominated_points_of_the_front_change_nothing():
    front, reference = np.array([[0.2, 0.8], [0.5, 0.4], [0.9, 0.1]]), np.array([1.0, 1.0])
    more = np.vstack([front, front[1], [0.5, 0.6], [0.7, 0.4], [0.9, 0.9], [2.0, 0.0]])
    mean, sd = np.random.default_rng(3).random((20, 2)), np.column_stack([np.full(20, 0.2), np.zeros(20)])
    few, many = boxes(front, reference), boxes(more, reference)
    assert len(few.level) == len(many.level) == 4
    assert expected_hypervolume_improvement(mean, sd, few) == pytest.approx(
        expected_hypervolume_improvement(mean, sd, many), rel=1e-12
    )


def test_an_empty_front_leaves_the_whole_box_below_the_reference():
    space = boxes(np.empty((0, 2)), np.array([1.0, 2.0]))
    assert expected_hypervolume_improvement(np.array([[0.25, 0.5]]), np.zeros((1, 2)), space)[0] == 0.75 * 1.5


def test_a_front_of_one_point():
    space = boxes(np.array([[0.5, 0.5]]), np.array([1.0, 1.0]))
    found = expected_hypervolume_improvement(np.array([[0.25, 0.25], [0.6, 0.6], [0.7, 0.3]]), np.zeros((3, 2)), space)
    assert found == pytest.approx([0.75 * 0.75 - 0.25, 0.0, 0.3 * 0.2])


def test_a_point_behind_the_reference_is_worth_nothing_where_its_cost_is_known():
    space = boxes(np.array([[0.5, 0.5]]), np.array([1.0, 1.0]))
    assert expected_hypervolume_improvement(np.array([[0.1, 1.0]]), np.array([[0.5, 0.0]]), space)[0] == 0.0


def test_a_thousand_candidates_against_a_front_from_two_hundred_trials():
    rng = np.random.default_rng(4)
    place = np.sort(rng.random(200))
    front = np.column_stack([1 - place, place])  # every trial is on the front
    space = boxes(front, np.array([1.1, 1.1]))
    assert len(space.level) == 201
    mean = rng.random((1000, 2))
    found = expected_hypervolume_improvement(mean, np.column_stack([np.full(1000, 0.05), np.zeros(1000)]), space)
    assert found.shape == (1000,)
    assert np.all(found >= 0)
    # What is well below the staircase is worth more than what is well above it.
    beyond = mean.sum(axis=1)
    assert found[beyond < 0.8].min() > found[beyond > 1.4].max()
