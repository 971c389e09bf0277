"""Errors that a person can act on, and the one way they are worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, what was found, what is allowed and what to do next."""

    where: str
    """A key (`budget`), a flag (`--budget`) or a place (`train.jsonl:17`)."""
    found: str
    """What was found there, as a sentence without a full stop."""
    allowed: str = ""
    """What is allowed, as a list or a range; empty where the sentence says it."""
    next_step: str = ""
    """What the person can do now."""

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.next_step:
            text += f". {self.next_step}"
        return text


class AutoPEFTError(Exception):
    """Base class of every error that the program raises on purpose."""


class UserError(AutoPEFTError):
    """One or more mistakes in what the user asked for; shown together, exit code 2, no traceback."""

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise ValueError("a UserError needs at least one Problem")
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[Problem, ...]]:
        return (type(self), self.problems)


class TakenTrialError(AutoPEFTError):
    """A candidate that is in the trial table already was added again."""


class RunBusyError(AutoPEFTError):
    """Another live process works on this run."""


def unknown(where: str, found: str, allowed: Iterable[str], next_step: str = "") -> Problem:
    """The problem of a name that nothing answers to, with the nearest allowed name as next step."""
    names = sorted(allowed)
    close = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    guess = f"Did you mean '{close[0]}'?" if close else ""
    return Problem(
        where,
        f"nothing is called '{found}'",
        ", ".join(names),
        " ".join(part for part in (guess, next_step) if part),
    )
