"""How much computing a candidate takes beside another one."""

import pytest

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.work import relative_work


@pytest.mark.parametrize(
    ("layers", "work"),
    [
        ([], 1.0),
        ([(11,)], 1 + 1 / 12),
        ([(3, 11)], 1 + 9 / 12),
        ([(8, 9), (6,)], 1 + 6 / 12),
        ([(0, 11)], 2.0),
        ([(11,), ()], 2.0),
    ],
)
def test_the_backward_pass_goes_down_to_the_lowest_layer_that_trains(layers, work):
    made = tuple(Insertion(method="lora", layers=one, modules=("attention.query",), settings={}) for one in layers)
    assert relative_work(Candidate(insertions=made, learning_rate=1e-3), 12) == pytest.approx(work)
