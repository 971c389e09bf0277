"""Budgets are read in every form that users write, and the first limit to run out is named."""

import pytest
from pydantic import TypeAdapter, ValidationError

from autopeft.domain.budget import Budget, BudgetField, Spent
from autopeft.domain.errors import UserError


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("64", (64, None, None)),
        ("64trials", (64, None, None)),
        ("1trial", (1, None, None)),
        ("90s", (None, 90, None)),
        ("30m", (None, 1800, None)),
        ("30min", (None, 1800, None)),
        ("2h", (None, 7200, None)),
        ("1.5h", (None, 5400, None)),
        ("1d", (None, 86400, None)),
        ("8gpu-h", (None, None, 28800)),
        ("8gpuh", (None, None, 28800)),
        ("0.5gpu-hours", (None, None, 1800)),
        ("2h, 8gpu-h,100", (100, 7200, 28800)),
        ("+32", (32, None, None)),
    ],
)
def test_every_written_form_is_read(text, limits):
    budget = Budget.parse(text)
    assert (budget.trials, budget.seconds, budget.gpu_seconds) == limits


@pytest.mark.parametrize("text", ["", "0", "0h", "h", "-3", "2.5trials", "2x", "2h,3h", "1,,2", "nan", "1e3"])
def test_what_cannot_be_read_says_what_is_allowed(text):
    with pytest.raises(UserError, match=r"8gpu-h") as caught:
        Budget.parse(text)
    assert caught.value.problems[0].where == "budget"


def test_a_budget_is_written_as_it_is_read():
    for text in ("64 trials", "1 trial", "2h", "64 trials, 90s, 8gpu-h"):
        assert str(Budget.parse(text)) == text


def test_the_first_limit_reached_is_named():
    budget = Budget.parse("10,1h")
    assert budget.used_up_by(Spent(trials=9, seconds=3599)) is None
    assert budget.used_up_by(Spent(trials=10, seconds=1)) == "trials"
    assert budget.used_up_by(Spent(trials=1, seconds=3600)) == "seconds"
    assert budget.share_used(Spent(trials=1, seconds=1800)) == 0.5


def test_an_extension_raises_only_the_limits_it_names():
    raised = Budget.parse("10,1h").plus(Budget.parse("+5"))
    assert raised == Budget(trials=15, seconds=3600)
    assert Budget(trials=3).plus(Budget.parse("+1h")) == Budget(trials=3)


def test_a_spec_may_write_a_budget_as_text_or_number():
    adapter = TypeAdapter(BudgetField)
    assert adapter.validate_python(12) == adapter.validate_python("12") == Budget(trials=12)
    with pytest.raises(ValidationError, match="allowed"):
        adapter.validate_python("soon")
    with pytest.raises(ValidationError, match="above 0"):
        adapter.validate_python({"trials": 0})
