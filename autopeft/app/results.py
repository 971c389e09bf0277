"""Reading a run back: scored trials, front, tables, the report, exported points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autopeft import plugins
from autopeft.app.folder import OWN_STORE, RunFolder, find_run
from autopeft.app.objectives import load_objectives, objectives_of
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.events import Notice, OnEvent, ignore
from autopeft.domain.objective import Objective
from autopeft.domain.ports import RunStore, Store
from autopeft.domain.repetition import believed
from autopeft.domain.results import Front, RunResults, score
from autopeft.domain.space import Space
from autopeft.domain.trial import Trial
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.export.best import export_best
from autopeft.export.points import export_point, export_whole
from autopeft.export.tables import write_front, write_trials
from autopeft.spaces.binding import bind
from autopeft.spaces.library import load_space
from autopeft.store import open_store


@dataclass(frozen=True)
class Opened:
    """A run with everything needed to read it."""

    folder: RunFolder
    run: RunStore
    space: Space
    objectives: tuple[Objective, ...]

    def artefact(self, trial: Trial) -> Path:
        """Folder of the trial's adapter."""
        return self.folder.artefacts / trial.artefact_name


@contextmanager
def open_run(folder: RunFolder, store_url: str | None) -> Iterator[Store]:
    """The database of a run, closed at the end.

    Raises:
        UserError: where it is not the one that the run was begun with, or cannot be reached.
    """
    begun_with = folder.store()
    if store_url is None and begun_with != OWN_STORE:
        raise _other_store(folder, begun_with)
    store = open_store(store_url or folder.sqlite_url)
    try:
        if store_url is not None and begun_with != store.shown:
            raise _other_store(folder, begun_with)
        yield store
    finally:
        store.close()


def shown_store(store_url: str | None) -> str:
    """What the run's folder says of its database: no password.

    Raises:
        UserError: where it cannot be reached, before anything is written.
    """
    if store_url is None:
        return OWN_STORE
    store = open_store(store_url)
    try:
        return store.shown
    finally:
        store.close()


def _other_store(folder: RunFolder, begun_with: str) -> UserError:
    where = "in its own folder" if begun_with == OWN_STORE else f"in {begun_with}"
    step = "Leave --store out." if begun_with == OWN_STORE else "Give its URL with --store or AUTOPEFT_STORE."
    return UserError(Problem("--store", f"the trials of run '{folder.name}' are {where}", "", step))


@contextmanager
def opened(name: str, runs: Path, store_url: str | None = None, objectives: tuple[str, ...] = ()) -> Iterator[Opened]:
    """A run by name, for reading; `objectives` take the place of its own, which needs no training.

    Raises:
        UserError: where there is no such run, the database does not hold it, or an objective is unknown.
    """
    folder = find_run(runs, name)
    with open_run(folder, store_url) as store:
        run = store.open(name)
        if run is None:
            raise UserError(
                Problem(
                    "NAME",
                    f"the run '{name}' is not in the database",
                    "",
                    "Where it was searched with --store URL, give the same URL.",
                )
            )
        spec = run.record.spec
        space = bind(load_space(str(folder.space_file)), run.record.layout, METHODS, POLICIES, CRITERIA)
        scored_by = load_objectives(objectives) if objectives else objectives_of(spec, run.record.task)
        yield Opened(folder, run, space, scored_by)


def load_results(run: Opened, with_importance: bool = False) -> RunResults:
    """Everything the trial table says now; importance is worked out only where asked for."""
    if with_importance:
        # Imported late: optuna takes a second, and a table does not need it.
        from autopeft.search import importance
    trials = tuple(score(trial, run.objectives) for trial in run.run.trials())
    return RunResults(
        record=run.run.record,
        budget=run.run.budget(),
        spent=run.run.spent(),
        objectives=run.objectives,
        trials=trials,
        front=Front.of(run.objectives, believed(run.objectives, trials).points),
        importance=(importance(run.space, run.objectives, trials, run.run.record.spec.seed) if with_importance else {}),
    )


def write_results(run: Opened, results: RunResults, on_event: OnEvent = ignore) -> dict[str, Path]:
    """Write `front.csv`, `trials.parquet`, `report.html` and `best/`; the exported folders by name.

    Points that cannot be exported (an adapter was deleted by hand) are told of.
    """
    parameters = [parameter.name for parameter in run.space.parameters]
    write_front(results, run.folder.front_csv, parameters)
    write_trials(results, run.folder.trials_parquet, parameters)
    write_report(results, run.folder.report)
    if not results.front.members:
        return {}
    by_number = {one.trial.number: one.trial for one in results.trials}
    try:
        return export_best(results, lambda number: run.artefact(by_number[number]), run.folder.best)
    except UserError as error:
        for problem in error.problems:
            on_event(Notice(str(problem)))
        return {}


def write_report(results: RunResults, path: Path, notes: tuple[str, ...] = ()) -> None:
    """Write the review page, one self-contained HTML file."""
    render: Callable[..., str] = plugins.load(plugins.PAGES, "report", "report")
    partial = path.with_suffix(".partial")
    partial.write_text(render(results, notes), encoding="utf-8")
    partial.replace(path)


def export(run: Opened, pick: str, out: Path, whole: bool = False) -> Path:
    """Export the point that `pick` names into `out`: its adapter, or the whole model with the adapter merged.

    `pick` is what `Front.pick` takes, or the number of any trial that completed and still has its adapter.

    Raises:
        UserError: where nothing answers to `pick`, the adapter is gone, or it cannot be merged.
    """
    results = load_results(run)
    chosen = None
    if pick.isdigit():
        chosen = next((one for one in results.trials if one.trial.number == int(pick) and one.values), None)
        if chosen is None:
            raise UserError(
                Problem("pick", f"there is no completed trial {pick}", "", "See the trial table of the report.")
            )
    chosen = chosen or results.front.pick(pick)
    artefact = run.artefact(chosen.trial)
    if not whole:
        return export_point(results, chosen, artefact, out, pick)
    from autopeft.evaluate.whole import write_whole  # imported late: torch takes seconds

    record, candidate = results.record, chosen.trial.candidate
    write = partial(write_whole, record.spec, record.task, candidate, artefact)
    return export_whole(results, chosen, artefact, out, pick, write)
