"""Showing a search while it runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autopeft.cli.tables import STATUS_STYLE, candidate_text, front_table, quantity, seconds_text, stop_text
from autopeft.domain.budget import Budget, Spent
from autopeft.domain.events import (
    Event,
    Notice,
    RungReached,
    RunOpened,
    TrialEnded,
    TrialRefused,
    TrialStarted,
    TrialTakenUp,
)
from autopeft.domain.fidelity import stop_of
from autopeft.domain.measurements import TakenUp
from autopeft.domain.results import Front
from autopeft.domain.start import SAMPLER
from autopeft.domain.trial import Trial, TrialStatus

FRONT_ROWS = 8


class Progress:
    """Keeps what the events said; subclasses show it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.opened: RunOpened | None = None
        self.running: dict[int, Trial] = {}
        self.shares: dict[int, float] = {}
        """Of the steps of a running trial that are done, as it last said."""
        self.counts: dict[TrialStatus, int] = {}
        self.seconds: list[float] = []
        self.front: Front | None = None
        self.spent = Spent()
        self.began = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case RunOpened():
                self.opened, self.spent, self.front = event, event.spent, event.front
                self.counts = {status: count for status, count in event.counts.items() if status.ended}
            case TrialStarted(trial):
                self.running[trial.number] = trial
                if event.again:
                    self.counts[TrialStatus.STOPPED_EARLY] = self.counts.get(TrialStatus.STOPPED_EARLY, 1) - 1
            case TrialTakenUp(number, taken_up):
                self.shares[number] = taken_up.step / taken_up.planned_steps
            case RungReached(number, rung):
                self.shares[number] = rung.fidelity
            case TrialEnded(trial):
                self.running.pop(trial.number, None)
                self.shares.pop(trial.number, None)
                self.front, self.spent = event.front, event.spent
                if trial.status.ended:
                    self.counts[trial.status] = self.counts.get(trial.status, 0) + 1
                    self.seconds.append(trial.seconds)
            case TrialRefused(trial):
                self.counts[trial.status] = self.counts.get(trial.status, 0) + 1
            case _:
                pass

    def opening(self) -> str:
        """One line about what is going to happen."""
        event = self.opened
        assert event is not None
        workers = f"{event.workers} worker{'s' if event.workers != 1 else ''}"
        where = f"budget {event.budget}, {workers}, {event.folder}"
        if not event.resumed:
            return f"searching {event.record.name}: {where}"
        again = f"{event.lost} lost and tried again"
        if event.pending > event.lost:
            again += f", {event.pending - event.lost} interrupted and tried again"
        return f"resuming {event.record.name}: {event.done} trials done, {again}, {self._left(event)} left; {where}"

    def _left(self, event: RunOpened) -> str:
        """What the budget still allows: trials, time, GPU-hours."""
        budget, spent, parts = event.budget, event.spent, []
        if budget.trials is not None:
            parts.append(f"{max(0, budget.trials - spent.trials)} trials")
        if budget.seconds is not None:
            parts.append(seconds_text(max(0.0, budget.seconds - spent.seconds)))
        if budget.gpu_seconds is not None:
            parts.append(f"{max(0.0, budget.gpu_seconds - spent.gpu_seconds) / 3600:.2f} GPU-hours")
        return " or ".join(parts)

    def ended_as(self, trial: Trial) -> str:
        """How a trial ended: its status, or at which rung it was stopped and how good it was there."""
        record = None if self.opened is None else self.opened.record
        stop = None if record is None else stop_of(trial, record.spec.training.rungs)
        return trial.status.value if record is None or stop is None else stop_text(stop, record.task.metric)

    def seconds_left(self) -> float | None:
        """Expected seconds until the budget is used up, None before the first trial has ended."""
        if self.opened is None or not self.seconds:
            return None
        budget: Budget = self.opened.budget
        spent = self.spent_now()
        mean = sum(self.seconds) / len(self.seconds)
        found = []
        if budget.trials is not None:
            left = budget.trials - spent.trials
            # Trials under way are half done on average.
            found.append(max(0.0, (left - 0.5 * len(self.running)) * mean / self.opened.workers))
        if budget.seconds is not None:
            found.append(max(0.0, budget.seconds - spent.seconds))
        return min(found, default=None)

    def spent_now(self) -> Spent:
        """What is spent, the clock included."""
        if self.opened is None:
            return self.spent
        seconds = self.opened.spent.seconds + time.monotonic() - self.began
        return self.spent.model_copy(update={"seconds": max(seconds, self.spent.seconds)})


def taken_up_text(what: str, taken_up: TakenUp) -> str:
    """One line about a trial, or a training, that was begun before."""
    if not taken_up.step:
        return f"{what} starts anew; {taken_up.problem}"
    return f"{what} goes on at step {taken_up.step} of {taken_up.planned_steps}"


def proposed_text(trial: Trial) -> str:
    """What a trial is, and who proposed it where that was not the sampler."""
    text = candidate_text(trial)
    return text if trial.origin == SAMPLER else f"{text} ({trial.origin})"


class PlainProgress(Progress):
    """One line per thing that happened, for logs and pipes."""

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        match event:
            case RunOpened():
                self._line(self.opening())
            case TrialTakenUp(number, taken_up):
                self._line(taken_up_text(f"trial {number}", taken_up))
            case TrialEnded(trial) if not trial.status.ended:
                why = f": {trial.failure.text}" if trial.failure else ""
                self._line(f"trial {trial.number} will be started again{why}")
            case TrialEnded(trial, values):
                left = self.seconds_left()
                parts = [f"trial {trial.number} {self.ended_as(trial)}"]
                parts += [
                    f"{objective.name} {quantity(value, objective.unit)}"
                    for objective, value in zip(event.front.objectives, values or (), strict=bool(values))
                ]
                if trial.failure is not None:
                    parts.append(trial.failure.text)
                parts.append(proposed_text(trial))
                parts.append(f"{trial.seconds:.0f} s")
                parts.append(f"front {len(event.front.members)}")
                if left is not None:
                    parts.append(f"about {seconds_text(left)} left")
                self._line(" | ".join(parts))
            case TrialRefused(trial):
                why = trial.failure.text if trial.failure else ""
                self._line(f"trial {trial.number} {trial.status.value} | {why} | {proposed_text(trial)}")
            case Notice(text):
                self._line(text)
            case _:
                pass

    def _line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


class LiveProgress(Progress):
    """A display that is redrawn in place: budget, trials by status, what runs, the front so far."""

    def __enter__(self) -> LiveProgress:
        self.live = Live(
            get_renderable=self.draw, console=self.console, refresh_per_second=4, transient=True, redirect_stdout=False
        )
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        match event:
            case RunOpened():
                self.live.console.print(escape(self.opening()), soft_wrap=True)
            case Notice(text):
                self.live.console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)
            case TrialTakenUp(number, taken_up):
                text = escape(taken_up_text(f"trial {number}", taken_up))
                self.live.console.print(f"[dim]{text}[/]", soft_wrap=True, highlight=False)
            case TrialEnded(trial) if trial.failure is not None:
                style = STATUS_STYLE[trial.status]
                self.live.console.print(
                    f"[{style}]trial {trial.number} {trial.status.value}[/]: {escape(trial.failure.text)}",
                    soft_wrap=True,
                )
            case TrialEnded(trial) if trial.status is TrialStatus.STOPPED_EARLY:
                text = escape(f"trial {trial.number} {self.ended_as(trial)}")
                self.live.console.print(f"[dim]{text}[/]", soft_wrap=True, highlight=False)
            case _:
                pass

    def draw(self) -> Group:
        """The display as it stands."""
        if self.opened is None:
            return Group(Text("looking at model and data …", style="dim"))
        budget, spent = self.opened.budget, self.spent_now()
        left = self.seconds_left()
        head = Table.grid(padding=(0, 2))
        used = []
        if budget.trials is not None:
            used.append(f"{spent.trials} of {budget.trials} trials")
        if budget.seconds is not None:
            used.append(f"{seconds_text(spent.seconds)} of {seconds_text(budget.seconds)}")
        if budget.gpu_seconds is not None:
            used.append(f"{spent.gpu_seconds / 3600:.2f} of {budget.gpu_seconds / 3600:g} GPU-hours")
        if budget.seconds is None:
            used.append(seconds_text(spent.seconds))
        head.add_row(
            ProgressBar(total=1.0, completed=budget.share_used(spent), width=30),
            ", ".join(used) + (f", about {seconds_text(left)} left" if left is not None else ""),
        )
        counts = Text("  ").join(
            [
                Text(f"{count} {status.value.replace('_', ' ')}", style=STATUS_STYLE[status])
                for status, count in self.counts.items()
            ]
            + [Text(f"{len(self.running)} running", style=STATUS_STYLE[TrialStatus.RUNNING])]
        )
        parts: list[Text | Table] = [head, counts]
        for number, trial in sorted(self.running.items()):
            at = f" {self.shares[number]:.0%}" if self.shares.get(number) else ""
            parts.append(
                Text(f"  trial {number}{at}  {proposed_text(trial)}", style="dim", no_wrap=True, overflow="ellipsis")
            )
        if self.front is not None and self.front.members:
            metric = self.opened.record.task.metric
            parts += [
                Text(""),
                front_table(self.front, metric, with_test=False, limit=FRONT_ROWS, title="front so far"),
            ]
        return Group(*parts)


def progress_for(console: Console, quiet: bool) -> Progress:
    """A live display where a person looks at a terminal, plain lines elsewhere, nothing when quiet."""
    if quiet:
        return Progress(console)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)
