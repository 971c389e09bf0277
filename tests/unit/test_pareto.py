"""Fronts and hypervolumes equal what their definitions say, computed the slow way."""

import itertools

import numpy as np
import pytest

from autopeft.domain.pareto import hypervolume, knee, layers, non_dominated


def non_dominated_reference(points):
    """The definition, pair by pair."""
    return np.array(
        [not any(np.all(other <= row) and np.any(other < row) for other in points) for row in points], dtype=bool
    )


def hypervolume_reference(points, reference):
    """Inclusion and exclusion over all subsets of boxes."""
    volume = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            sides = reference - np.max(subset, axis=0)
            volume += (-1) ** (size + 1) * float(np.prod(np.maximum(sides, 0)))
    return volume


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_the_definition_s(objectives, seed):
    draw = np.random.default_rng(seed)
    points = draw.integers(0, 6, size=(60, objectives)).astype(float)  # few levels, so that ties and doubles occur
    assert np.array_equal(non_dominated(points), non_dominated_reference(points))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_layers_are_fronts_of_what_earlier_fronts_leave(objectives, seed):
    draw = np.random.default_rng([seed, 1])
    points = draw.integers(0, 6, size=(50, objectives)).astype(float)
    expected = np.full(len(points), -1)
    while (expected < 0).any():
        left = np.flatnonzero(expected < 0)
        expected[left[non_dominated_reference(points[left])]] = expected.max() + 1
    assert np.array_equal(layers(points), expected)
    some = layers(points, until=12)
    exact = np.array([np.sum(expected < own) < 12 for own in expected])
    assert np.array_equal(some[exact], expected[exact])
    assert np.all(some[~exact] > some[exact].max())


def test_a_row_is_found_dominated_however_small_the_difference():
    points = np.array([[1e9 + 1e-6, 0.5, 1e-12], [1e9, 0.5, 1e-12], [1e9, 0.5, 2e-12]])
    assert non_dominated(points).tolist() == [False, True, False]


def test_an_empty_set_has_an_empty_front():
    assert non_dominated(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_hypervolume_equals_inclusion_and_exclusion(objectives, seed):
    points = np.random.default_rng(seed).random((9, objectives)) * 1.2
    reference = np.ones(objectives)
    assert hypervolume(points, reference) == pytest.approx(hypervolume_reference(points, reference), abs=1e-12)


def test_the_hypervolume_equals_another_library_s():
    from optuna._hypervolume import compute_hypervolume

    points = np.random.default_rng(3).random((40, 3))
    reference = np.full(3, 1.1)
    assert hypervolume(points, reference) == pytest.approx(compute_hypervolume(points, reference), rel=1e-9)


def test_points_beyond_the_reference_add_nothing():
    assert hypervolume(np.array([[2.0, 0.1], [0.1, 2.0]]), np.ones(2)) == 0.0


def test_the_hypervolume_never_falls_as_points_are_added():
    points = np.random.default_rng(0).random((30, 2))
    volumes = [hypervolume(points[:count], np.ones(2)) for count in range(31)]
    assert volumes == sorted(volumes)


def test_the_knee_is_the_point_below_the_line_through_the_extremes():
    assert knee(np.array([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0]])) == 1
    assert knee(np.array([[0.0, 10.0], [4.9, 5.0], [10.0, 0.0]])) == 1
    assert knee(np.array([[3.0, 3.0]])) == 0
    # No knee: the front bulges away from the ideal point, or is a line. The first objective decides.
    assert knee(np.array([[10.0, 0.0], [9.0, 9.0], [0.0, 10.0]])) == 2
    assert knee(np.array([[10.0, 0.0], [0.0, 10.0]])) == 1
    with pytest.raises(ValueError, match="empty"):
        knee(np.empty((0, 2)))


def test_the_knee_does_not_depend_on_units():
    points = np.array([[0.0, 10.0], [2.0, 3.0], [5.0, 2.0], [10.0, 0.0]])
    assert knee(points) == knee(points * np.array([1e9, 1e-3])) == 1
