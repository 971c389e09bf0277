"""Quality of predictions: one number per metric of the task, and the predictions in the user's own terms."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.results import TaskInfo


def metrics(task: TaskInfo, logits: Any, labels: Any) -> dict[str, float]:
    """Every metric of the task, as fractions (correlations from -1 to 1).

    `logits` is `[rows, classes]`, for regression `[rows, 1]` or `[rows]`; `labels` is `[rows]`; both tensors or arrays.
    F1 is of the second class for two classes, else the macro average over the classes that occur in labels or
    predictions. A metric that is not defined is NaN: a correlation of constant predictions, and everything where a
    logit is not finite (the largest of NaNs would otherwise pass for a prediction).
    """
    scores, truth = _array(logits), _array(labels)
    if len(scores) != len(truth) or len(truth) == 0:
        raise ValueError(f"{len(scores)} predictions for {len(truth)} labels")
    if not np.isfinite(scores).all():
        return dict.fromkeys(task.metrics, math.nan)
    # Loading them takes a second, which an estimate of memory need not wait for.
    if task.kind == "regression":
        from scipy.stats import pearsonr, spearmanr

        values = scores.reshape(len(scores))
        found = {"spearman": _correlation(spearmanr, values, truth), "pearson": _correlation(pearsonr, values, truth)}
    else:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        predicted = scores.argmax(axis=1)
        average = "binary" if len(task.labels) == 2 else "macro"
        found = {
            "accuracy": float(accuracy_score(truth, predicted)),
            "f1": float(f1_score(truth, predicted, average=average, zero_division=0.0)),
            "matthews": float(matthews_corrcoef(truth, predicted)),
        }
    return {name: found[name] for name in task.metrics}


def likelihood_metrics(log_probability: Any, tokens: Any, correct: Any) -> dict[str, float]:
    """Mean loss per token in nats, its exponential and the share of tokens found most likely, over all rows together.

    `log_probability`, `tokens` and `correct` are `[rows]`: sum over the row's completion, number of its tokens, hits.
    """
    total = float(_array(tokens).sum())
    if total == 0:
        return dict.fromkeys(("validation_loss", "perplexity", "token_accuracy"), math.nan)
    loss = -float(_array(log_probability).sum()) / total
    return {
        "validation_loss": loss,
        # Beyond this a float64 overflows; such a model is as bad as any.
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": float(_array(correct).sum()) / total,
    }


def choice_accuracy(chosen: Sequence[int], answers: Sequence[int | None]) -> float:
    """Share of rows whose chosen index is the right one."""
    return sum(one == right for one, right in zip(chosen, answers, strict=True)) / len(answers)


def predictions(task: TaskInfo, logits: Any) -> list[str] | list[float]:
    """Class names, or scores for regression, one per row."""
    scores = _array(logits)
    if task.kind == "regression":
        return [float(score) for score in scores.reshape(len(scores))]
    return [task.labels[index] for index in scores.argmax(axis=1)]


def _correlation(function: Any, values: NDArray[Any], truth: NDArray[Any]) -> float:
    if len(values) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input is warned about; the NaN says it
        return float(function(values, truth).statistic)


def _array(values: Any) -> NDArray[Any]:
    """A numpy array of a tensor on any device and of any dtype (bfloat16 included), or of a sequence."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
