"""A trial that fails inside a method ends alone, and says which method it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest

from autopeft.domain.trial import FailureReason, TrialStatus
from autopeft.evaluate.methods import METHODS
from tests.unit.evaluate_trials import opened, run, spec_of, task_of


def breaks(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("half way")


@pytest.mark.parametrize("where", ["while it is put in", "while it is trained"])
def test_the_method_is_named_and_the_next_trial_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    evaluator = opened(spec_of(tmp_path))
    with monkeypatch.context() as patched:
        if where == "while it is put in":
            patched.setattr(METHODS["dora"], "config", breaks)
        else:
            patched.setattr(peft.tuners.lora.dora.DoraLinearLayer, "forward", breaks)
        outcome, _ = run(evaluator, task_of(evaluator, tmp_path, variant="dora"))
    assert outcome.status is TrialStatus.CRASHED
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.EXCEPTION
    assert outcome.failure.text == "method dora: ZeroDivisionError: half way"
    assert "half way" in (outcome.failure.detail or "")
    assert evaluator._bench.untouched.differences() == []
    after, _ = run(evaluator, task_of(evaluator, tmp_path, 1, variant="dora"))
    assert after.status is TrialStatus.COMPLETE
