"""Running a search, going on with one, and finishing it: test scores, tables, report, exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autopeft.app.folder import RunFolder, check_writable, find_run
from autopeft.app.known import KnownFromLayout
from autopeft.app.planning import Plan, make_plan, written
from autopeft.app.results import Opened, load_results, open_run, shown_store, write_results
from autopeft.app.starting import make_start
from autopeft.cluster.admission import Admission
from autopeft.cluster.campaign import Campaign
from autopeft.cluster.local_runner import LocalRunner
from autopeft.cluster.stopping import EarlyStopping
from autopeft.domain.budget import Budget
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.events import Event, Notice, OnEvent, RunOpened, SearchEnded, ignore
from autopeft.domain.ports import Evaluator, EvaluatorRef, KnownObjectives, RunStore, Sampler
from autopeft.domain.results import RunResults
from autopeft.domain.spec import NOT_ASKED_OF_TRIALS, SearchSpec
from autopeft.domain.trial import Trial
from autopeft.plugins import locate
from autopeft.search import make_sampler
from autopeft.search.front.views import SpaceView
from autopeft.search.repeating import RepeatingSampler
from autopeft.search.stopping import rule_of
from autopeft.spaces.library import load_space


@dataclass(frozen=True)
class SearchResult:
    """What a search hands back."""

    folder: Path
    results: RunResults
    why: str
    """Why it ended, in one sentence."""
    interrupted: bool
    exported: dict[str, Path]
    """Folders of the exported points by name."""


def search(
    spec: SearchSpec,
    runs: Path,
    *,
    store_url: str | None = None,
    on_event: OnEvent = ignore,
    evaluator: EvaluatorRef | None = None,
    plan: Callable[[SearchSpec], Plan] = make_plan,
) -> SearchResult:
    """Begin the search that `spec` asks for, or go on with it where its run exists.

    A budget that differs from the stored one replaces it.

    Args:
        spec: What to search.
        runs: Folder that holds the run's folder.
        store_url: Database; `None` is a SQLite file in the run's folder.
        on_event: Told what happens, in the calling thread.
        evaluator: Takes the place of real training, for tests and benchmarks.
        plan: Takes the place of inspecting model and data.

    Raises:
        UserError: for mistakes in the spec, a name that another spec has, or a folder that cannot be written.
        RunBusyError: where another process works on the run.
    """
    folder = RunFolder(runs / spec.run_name)
    if folder.exists:
        _check_same(folder, spec)
    check_writable(runs)
    planned = plan(spec)
    for text in planned.notices:
        on_event(Notice(text))
    if not folder.exists:
        start = make_start(planned, runs, store_url, lambda text: on_event(Notice(text)))
        folder.begin(spec, planned.space_as_written(), shown_store(store_url), start)
    with open_run(folder, store_url) as store:
        run = store.open(spec.run_name)
        if run is None:
            run = store.create(planned.record())
        else:
            _check_data(run, planned)
            if written(load_space(str(folder.space_file))) != planned.space_as_written():
                raise _taken(spec, [f"the space {spec.space} was changed"])
            if run.record.spec.digest != spec.digest:
                raise _taken(spec, differences(run.record.spec, spec))
            if run.budget() != spec.budget:
                on_event(Notice(f"The budget is {spec.budget} in all (it was {run.budget()})."))
        # What takes the place of training has a memory that no forecast of training tells.
        admission = planned.admission(lambda text: on_event(Notice(text))) if evaluator is None else None
        return _run(planned, folder, run, on_event, evaluator or planned.evaluator(), admission)


def resume(name: str, runs: Path, *, store_url: str | None = None, on_event: OnEvent = ignore) -> SearchResult:
    """Go on with a run by name, with the spec it was begun with.

    Raises:
        UserError: where there is no such run.
    """
    folder = find_run(runs, name)
    return search(folder.load_spec(), runs, store_url=store_url, on_event=on_event, plan=_as_begun(folder))


def extend(
    name: str, runs: Path, more: Budget, *, store_url: str | None = None, on_event: OnEvent = ignore
) -> SearchResult:
    """Raise a run's budget by `more` and go on with it.

    Raises:
        UserError: where there is no such run, or `more` names a kind of limit that the run does not have.
    """
    folder = find_run(runs, name)
    spec = folder.load_spec()
    new = [kind for kind, limit in more if limit is not None and getattr(spec.budget, kind) is None]
    if new:
        raise UserError(
            Problem(
                "budget",
                f"'{more}' raises a limit ({', '.join(new)}) that run {name} does not have",
                f"what {spec.budget} names",
                "To set a new budget, repeat the search command with it.",
            )
        )
    raised = spec.model_copy(update={"budget": spec.budget.plus(more)})
    return search(raised, runs, store_url=store_url, on_event=on_event, plan=_as_begun(folder))


def _as_begun(folder: RunFolder) -> Callable[[SearchSpec], Plan]:
    """Planning with the run's own copy of its space: the file it came from may have changed or gone."""
    return partial(make_plan, space_from=folder.space_file)


def _run(
    plan: Plan,
    folder: RunFolder,
    run: RunStore,
    on_event: OnEvent,
    evaluator: EvaluatorRef,
    admission: Admission | None,
) -> SearchResult:
    spec = plan.spec
    known = KnownFromLayout(plan.inspection.layout, admission)
    sampler: Sampler = make_sampler(
        spec.sampler.name,
        plan.space,
        plan.objectives,
        spec.seed,
        spec.sampler.startup_trials,
        known=known,
        start=folder.load_start(),
    )

    if spec.repeat_share:
        sampler = RepeatingSampler(sampler, plan.objectives, spec.repeat_share, spec.seed)

    def told(event: Event) -> None:
        if isinstance(event, RunOpened):
            # Now the run is this process's own, and its budget is raised: the file follows.
            folder.save(spec.model_copy(update={"name": spec.run_name}))
        on_event(event)

    campaign = Campaign(
        run,
        sampler,
        plan.objectives,
        artefacts=folder.artefacts.resolve(),
        resources=plan.resources,
        seed=spec.seed,
        max_failure_share=spec.max_failure_share,
        keep_adapters=spec.keep_adapters,
        budget=spec.budget,
        admission=admission,
        stopping=_stopping(plan, known),
        on_event=told,
    )
    if spec.resources.runner == "local":
        end = LocalRunner(evaluator, plan.resources).run(campaign)
    else:
        # Imported here so that the local runner works where ray is not installed.
        from autopeft.cluster.ray_runner import RayRunner

        end = RayRunner(evaluator, plan.resources).run(campaign)
    on_event(SearchEnded(end.why, end.interrupted))
    opened = Opened(folder, run, plan.space, plan.objectives)
    results, interrupted = load_results(opened, with_importance=True), end.interrupted
    # Written before the test scores too: whatever goes wrong while scoring, the search's result is there.
    exported = write_results(opened, results, on_event)
    if not interrupted and _unscored(opened, results):
        interrupted = not _score_test(opened, _unscored(opened, results), evaluator, on_event)
        results = load_results(opened, with_importance=True)
        exported = write_results(opened, results, on_event)
    return SearchResult(folder.path, results, end.why, interrupted, exported)


def _stopping(plan: Plan, known: KnownObjectives) -> EarlyStopping | None:
    """What decides at rungs, where the spec asks for it."""
    name, shares = plan.spec.early_stopping, plan.spec.training.rungs
    if name is None:
        return None
    view = SpaceView(plan.space, plan.objectives, known, plan.spec.seed)
    return EarlyStopping(plan.objectives, shares, rule_of(name, shares, view))


def _unscored(opened: Opened, results: RunResults) -> list[Trial]:
    """Points of the front without a test score, where there is a test set."""
    if "test" not in opened.run.record.task.rows:
        return []
    return [one.trial for one in results.front.members if one.trial.test_quality is None]


def _score_test(opened: Opened, trials: Sequence[Trial], reference: EvaluatorRef, on_event: OnEvent) -> bool:
    """Score points of the front on the test set: once each, after the search, so that nothing is chosen by it.

    A point that cannot be scored is told of and stays without a score. Returns whether all were tried: False after
    Ctrl-C.
    """
    on_event(Notice(f"Scoring {len(trials)} points of the front on the test set."))
    scorer: Evaluator | None = None
    try:
        scorer = locate(reference.target)(**reference.arguments)
        for trial in trials:
            try:
                quality = scorer.score_test(opened.artefact(trial))
            except Exception as error:
                on_event(Notice(f"Trial {trial.number} could not be scored on the test set: {error}"))
            else:
                opened.run.record_test(trial.number, quality)
    except KeyboardInterrupt:
        return False
    finally:
        if scorer is not None:
            scorer.close()
    return True


def differences(old: SearchSpec, new: SearchSpec) -> list[str]:
    """Keys in which two specs ask for different trials, as `training.epochs: 3.0 -> 1.0`."""
    found = []
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for key, value in before.items():
        other = after[key]
        if isinstance(value, dict) and isinstance(other, dict):
            found += [f"{key}.{sub}: {value[sub]} -> {other[sub]}" for sub in value if value[sub] != other[sub]]
        elif value != other:
            found.append(f"{key}: {value} -> {other}")
    return [text for text in found if not text.startswith(NOT_ASKED_OF_TRIALS)]


def _check_same(folder: RunFolder, spec: SearchSpec) -> None:
    old = folder.load_spec()
    if old.run_name != folder.name:
        raise UserError(
            Problem(
                "name", f"the folder {folder.path} holds the run '{old.run_name}'", "", "Give it its old name back."
            )
        )
    if old.digest != spec.digest:
        raise _taken(spec, differences(old, spec))


def _taken(spec: SearchSpec, changed: list[str]) -> UserError:
    return UserError(
        Problem(
            "name",
            f"the run '{spec.run_name}' was begun with a different spec ({'; '.join(changed)})",
            "",
            "Choose another --name, or repeat the first command to go on with it.",
        )
    )


def _check_data(run: RunStore, plan: Plan) -> None:
    """Trials of different data or weights must not share a front."""
    old = run.record.provenance
    changed = [
        what
        for what, before, now in (
            ("data", old.data_fingerprint, plan.inspection.data_fingerprint),
            ("base model", old.model_fingerprint, plan.inspection.model_fingerprint),
        )
        if before != now
    ]
    if changed:
        raise UserError(
            Problem(
                "name",
                f"the {' and the '.join(changed)} changed since run '{run.record.name}' was begun",
                "",
                "Choose another --name for a new search.",
            )
        )
