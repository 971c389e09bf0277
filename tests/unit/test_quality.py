"""Metrics agree with their textbook formulas, and say NaN where they are not defined."""

import math

import numpy as np
import pytest
import torch

from autopeft.domain.results import TaskInfo
from autopeft.evaluate.quality import metrics, predictions

TWO = TaskInfo(
    kind="classification", labels=("no", "yes"), metric="f1", metrics=("accuracy", "f1", "matthews"), rows={}
)
THREE = TWO.model_copy(update={"labels": ("a", "b", "c")})
SCORES = TaskInfo(kind="regression", metric="spearman", metrics=("spearman", "pearson"), rows={})


def logits_of(classes: list[int], number: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), number).float() * 3 - 1


def test_two_classes_agree_with_the_confusion_counts() -> None:
    truth = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    predicted = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    tp, fp, fn, tn = 3, 2, 1, 4
    found = metrics(TWO, logits_of(predicted, 2), torch.tensor(truth))
    assert found["accuracy"] == pytest.approx((tp + tn) / 10)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / below)


def test_f1_of_two_classes_is_of_the_second_class() -> None:
    found = metrics(TWO, logits_of([0, 0, 0, 0], 2), torch.tensor([0, 0, 0, 1]))
    assert found["accuracy"] == 0.75
    assert found["f1"] == 0.0


def test_many_classes_agree_with_macro_f1_and_the_r_k_statistic() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 3, 200), random.integers(0, 3, 200)
    predicted[:90] = truth[:90]
    found = metrics(THREE, logits_of(predicted.tolist(), 3), torch.from_numpy(truth))
    f1 = []
    for one in range(3):
        hits = int(((truth == one) & (predicted == one)).sum())
        f1.append(2 * hits / (int((truth == one).sum()) + int((predicted == one).sum())))
    assert found["f1"] == pytest.approx(sum(f1) / 3)
    # Gorodkin (2004), R_K: covariance of the one-hot matrices over the root of the two variances.
    left, right = np.eye(3)[truth], np.eye(3)[predicted]
    left, right = left - left.mean(0), right - right.mean(0)
    expected = (left * right).sum() / math.sqrt((left * left).sum() * (right * right).sum())
    assert found["matthews"] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx(float((truth == predicted).mean()))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_correlations_agree_with_their_formulas(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 6, 80) / 2  # with ties, which take their mean rank
    values = truth + random.normal(size=80)

    def pearson(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(), y - y.mean()
        return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))

    def ranks(x: np.ndarray) -> np.ndarray:
        return np.array([(x < one).sum() + ((x == one).sum() + 1) / 2 for one in x])

    found = metrics(SCORES, torch.tensor(values).reshape(shape), torch.tensor(truth))
    assert found == pytest.approx(
        {"spearman": pearson(ranks(values), ranks(truth)), "pearson": pearson(values, truth)}, abs=1e-6
    )


def test_a_correlation_of_constant_predictions_is_nan() -> None:
    found = metrics(SCORES, torch.full((5, 1), 2.0), torch.arange(5.0))
    assert all(math.isnan(value) for value in found.values())
    assert set(found) == {"spearman", "pearson"}


def test_matthews_of_constant_predictions_is_zero() -> None:
    assert metrics(TWO, logits_of([1, 1, 1], 2), torch.tensor([0, 1, 1]))["matthews"] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("task", [TWO, SCORES])
def test_a_logit_that_is_not_finite_makes_every_metric_nan(task: TaskInfo, bad: float) -> None:
    logits = torch.ones(4, 2 if task is TWO else 1)
    logits[2, 0] = bad
    found = metrics(task, logits, torch.tensor([0, 1, 0, 1]))
    assert set(found) == set(task.metrics)
    assert all(math.isnan(value) for value in found.values())


def test_only_the_task_s_metrics_are_given_and_bfloat16_and_arrays_are_taken() -> None:
    task = TWO.model_copy(update={"metrics": ("accuracy",)})
    assert metrics(task, logits_of([0, 1], 2).bfloat16(), torch.tensor([0, 1])) == {"accuracy": 1.0}
    assert metrics(task, [[1.0, 0.0], [1.0, 0.0]], [0, 1]) == {"accuracy": 0.5}


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 labels"):
        metrics(TWO, logits_of([0, 1], 2), torch.tensor([0]))


def test_predictions_are_in_the_user_s_terms() -> None:
    assert predictions(THREE, logits_of([2, 0], 3)) == ["c", "a"]
    assert predictions(SCORES, torch.tensor([[0.5], [-2.0]])) == [0.5, -2.0]
