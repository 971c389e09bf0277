"""How a trial that did not complete is told apart: out of memory, over the limit, not finite, crashed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import UserError
from autopeft.domain.measurements import Measurements, PeakMemory
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus

DETAIL_LINES = 30
"""Lines of a traceback that a failure keeps."""


_OUT_OF_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)
"""What errors say, in lower case, when memory ran out."""


class NotFiniteError(Exception):
    """A loss or a prediction is NaN or infinite."""


class OverLimitError(Exception):
    """The measured training peak is above the user's limit."""

    def __init__(self, peak: PeakMemory, limit_bytes: int) -> None:
        self.violation = peak.live_bytes / limit_bytes - 1
        super().__init__(
            f"training needs {peak.live_bytes / 2**20:.1f} MiB and the limit is {limit_bytes / 2**20:.1f} MiB"
        )


class MissingMetricError(Exception):
    """Validation lacks a metric, or it is not finite."""


class MethodError(RuntimeError):
    """A PEFT method failed where it was put in; the text begins with its name."""


@contextmanager
def named(method: str) -> Iterator[None]:
    """Errors inside name the method; lack of memory and a user's mistake pass as they are."""
    try:
        yield
    except (UserError, MethodError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise MethodError(f"{method}: {type(error).__name__}: {first_line(error)}") from error


def failed(error: Exception, measured: Measurements | None, candidate: Candidate) -> Outcome:
    """The outcome of a trial that ended with `error`; what was measured before is kept, a crash names the methods."""
    if isinstance(error, OverLimitError):
        failure = Failure(reason=FailureReason.OVER_LIMIT, text=str(error), violation=error.violation)
        return Outcome(status=TrialStatus.INFEASIBLE, failure=failure, measurements=measured)
    if isinstance(error, NotFiniteError):
        failure = Failure(reason=FailureReason.NOT_FINITE, text=str(error))
        return Outcome(status=TrialStatus.INVALID, failure=failure, measurements=measured)
    if isinstance(error, MissingMetricError):
        failure = Failure(reason=FailureReason.MISSING_METRIC, text=str(error))
        return Outcome(status=TrialStatus.INVALID, failure=failure, measurements=measured)
    lines = "".join(traceback.format_exception(error)).splitlines()[-DETAIL_LINES:]
    if is_out_of_memory(error):
        text = f"out of memory: {first_line(error)}"
        failure = Failure(reason=FailureReason.OUT_OF_MEMORY, text=text, detail="\n".join(lines))
        return Outcome(status=TrialStatus.INFEASIBLE, failure=failure, measurements=measured, recycle_worker=True)
    methods = " + ".join(one.method for one in candidate.insertions) or "head alone"
    said = str(error) if isinstance(error, MethodError) else f"{methods}: {type(error).__name__}: {first_line(error)}"
    text = f"method {said}" if candidate.insertions else said
    failure = Failure(reason=FailureReason.EXCEPTION, text=text, detail="\n".join(lines))
    return Outcome(status=TrialStatus.CRASHED, failure=failure, measurements=measured, recycle_worker=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator, the driver and the libraries raise a plain RuntimeError or torch.AcceleratorError.
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in said for sign in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), "no message")
