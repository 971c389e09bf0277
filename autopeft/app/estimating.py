"""What a training would take, without training: of one candidate, of a script's configuration, of a whole space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from autopeft.app.batches import largest_batch
from autopeft.app.candidate_file import read_candidate
from autopeft.domain.candidate import Candidate
from autopeft.domain.devices import DEFAULT, Device
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.estimate import Bin, DeviceFit, Estimate, Point, Share, SpaceEstimate, Training
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.memory import Prediction
from autopeft.domain.ports import Proposal
from autopeft.domain.spec import ModelSpec, SearchSpec
from autopeft.evaluate.devices import choose_device
from autopeft.evaluate.inspection import ANY_TASK, ANY_TEXT
from autopeft.evaluate.memory.bare import check_sizes
from autopeft.evaluate.memory.external import PeftFile, Script, read_peft
from autopeft.evaluate.memory.forecast import Forecast, forecast_at, open_forecast
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.evaluate.source import weight_files
from autopeft.spaces.binding import bind
from autopeft.spaces.library import load_space

TOKENS = 512
"""Of the longest row of a script, where nothing is said."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 12
_LONGEST = 160
"""Characters of another library's message that are shown."""
Predict = Callable[[int, int], Prediction]
"""Of a number of rows, and of the bytes that libraries hold in the allocator."""


@dataclass(frozen=True)
class Step:
    """The step that is asked about, as far as a spec does not say it."""

    rows: int | None = None
    """Of the largest batch; None is the spec's batch size."""
    largest: bool = False
    """Whether the largest batch that fits is looked for."""
    tokens: int | None = None
    """Of the longest row; None is what the rows or the spec say."""
    padded: bool = True
    task: TaskName = TaskName.SEQUENCE_CLASSIFICATION
    reads_data: bool = False
    """Whether the spec's rows decide batch, length and task."""
    devices: tuple[Device, ...] = ()
    """Where it shall fit; a limit on live bytes is one of them."""

    @property
    def gpus(self) -> bool:
        """Whether a GPU is among them."""
        return any(device.context_bytes for device in self.devices)

    def problems(self) -> list[Problem]:
        """What cannot be answered."""
        if self.largest and not self.devices:
            return [Problem("--batch", "'auto' needs a limit", "", "Name a --device, or give --max-memory.")]
        return []


@dataclass(frozen=True)
class ScriptSpec:
    """A plain script: how it trains what a configuration of peft says."""

    model: ModelSpec
    peft: str
    """An adapter_config.json, its folder, or `none`."""
    task: TaskName | None = None
    """None is what the configuration says, else a language model."""
    optimizer: str = "adamw"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    adapters_in_float32: bool = True


def estimate_script(asked: ScriptSpec, step: Step) -> Estimate:
    """The memory of a plain script of transformers and peft on a GPU.

    Raises:
        UserError: with what is wrong with model, configuration, step and devices.
    """
    problems = step.problems()
    if asked.model.load_in is not None and asked.model.dtype == "float32":
        problems.append(Problem("--load-in", "computes in half precision", "", "Leave out --dtype, or say bf16."))
    peft: PeftFile | None = None
    for check in (lambda: check_sizes(asked.model), lambda: read_peft(asked.peft, asked.task)):
        try:
            peft = check() or peft
        except UserError as error:
            problems += error.problems
    if problems or peft is None:
        raise UserError(*problems)
    task = asked.task or peft.task or TaskName.CAUSAL_LM
    script = Script(
        asked.model,
        ANY_TEXT if task is TaskName.CAUSAL_LM else ANY_TASK,
        peft,
        attention=asked.attention,
        adapters_in_float32=asked.adapters_in_float32,
    )
    rows, tokens = step.rows or 1, step.tokens or min(TOKENS, script.layout.max_positions or TOKENS)
    setup = Setup(
        rows=rows,
        tokens=tokens,
        padded=step.padded,
        optimizer=asked.optimizer,
        checkpointing=asked.gradient_checkpointing,
        caches=True,
        holds_outputs=True,
    )
    _check_room(step, script.layout, tokens)
    training = Training(
        model=asked.model.source,
        task=task.value,
        batch=rows,
        seq=tokens,
        padded=step.padded,
        dtype=script.dtype,
        load_in=asked.model.load_in,
        target="cuda",
        attention=asked.attention,
        optimizer=asked.optimizer,
        gradient_checkpointing=asked.gradient_checkpointing,
        held_outputs=True,
    )
    notices = []
    if peft.ignored:
        notices.append(f"The installed peft does not know {', '.join(peft.ignored)}: ignored.")
    if asked.model.load_in is not None:
        notices.append(_prepared(asked))

    def predict(rows: int, workspace: int) -> Prediction:
        with _traceable("--peft-config"):
            return script.predict(replace(setup, rows=rows), workspace)

    return _answered(predict, peft.title, training, step, notices)


def _prepared(asked: ScriptSpec) -> str:
    """What is taken for granted of a script whose base is in few bits."""
    said = (
        "The base is taken to be as peft's prepare_model_for_kbit_training leaves it: "
        f"what is not in {asked.model.load_in} is in float32, and so are the activations."
    )
    default = " That function turns checkpointing on unless told otherwise: then say --gradient-checkpointing."
    return said if asked.gradient_checkpointing else said + default


def estimate_candidate(spec: SearchSpec, path: Path, step: Step, words: Callable[[Candidate], str]) -> Estimate:
    """The memory of one candidate, trained as a search trains it.

    `words` says a candidate in one line.

    Raises:
        UserError: with what is wrong with model, data, candidate, step and devices.
    """
    if problems := step.problems():
        raise UserError(*problems)
    forecast = _forecast(spec, step)
    candidate = read_candidate(path, forecast.layout)

    @cache
    def at(rows: int) -> Forecast:
        return forecast.at(replace(forecast.setup, rows=rows))

    @cache
    def predict(rows: int, workspace: int) -> Prediction:
        with _traceable("--candidate"):
            return at(rows).traced(candidate, workspace)

    return _answered(predict, words(candidate), _training(spec, forecast), step, [])


def estimate_space(
    spec: SearchSpec,
    step: Step,
    sample: int,
    words: Callable[[Candidate], str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SpaceEstimate:
    """The memory of a seeded sample of a space, on blocks of known kinds put together.

    `words` says a candidate in one line; `on_progress` is told how many of how many are done.

    Raises:
        UserError: with what is wrong with model, data, space and devices.
    """
    if step.largest:
        raise UserError(
            Problem("--batch", "'auto' is for one configuration", "", "Add --candidate FILE or --peft-config FILE.")
        )
    from autopeft.search import make_sampler  # with optuna, which nothing else here needs

    forecast = _forecast(spec, step)
    space = bind(load_space(spec.space), forecast.layout, METHODS, POLICIES, CRITERIA)
    sampler = make_sampler("random", space, (), spec.seed)
    workspace = _workspace(step, forecast.setup.target)
    drawn: list[tuple[Proposal, Prediction]] = []
    reasons: Counter[str] = Counter()
    asked = 0
    for number in range(sample):
        proposal = sampler.ask(number)
        if proposal is None:
            break
        asked += 1
        found = forecast.predict(proposal.candidate)
        if found is None:
            reasons[forecast.why_not(proposal.candidate)] += 1
        else:
            drawn.append((proposal, found))
        on_progress(number + 1, sample)
    drawn.sort(key=lambda one: (one[1].train_peak_bytes, one[0].candidate.digest))
    peaks = np.array([found.train_peak_bytes + workspace for _, found in drawn], dtype=np.float64)

    def point(index: int) -> Point | None:
        if not drawn:
            return None
        proposal, found = drawn[index]
        return Point(
            configuration=words(proposal.candidate),
            train_peak_bytes=found.train_peak_bytes + workspace,
            trainable_parameters=found.trainable_parameters,
            parameters=dict(proposal.parameters),
        )

    counts, edges = np.histogram(peaks, bins=BINS) if len(peaks) else (np.zeros(0), np.zeros(1))
    return SpaceEstimate(
        space=space.name,
        training=_training(spec, forecast),
        seed=spec.seed,
        candidates=asked,
        unknown=dict(reasons),
        quantiles={f"{share:g}": round(float(np.quantile(peaks, share))) for share in QUANTILES if len(peaks)},
        histogram=tuple(
            Bin(from_bytes=round(low), to_bytes=round(high), count=int(count))
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ),
        smallest=point(0),
        largest=point(-1),
        shares=tuple(_share(device, peaks - workspace) for device in step.devices),
        notices=space.notices,
    )


def _share(device: Device, live: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Share:
    """Of predictions without workspaces, those that fit."""
    room = device.usable_bytes - (device.workspace_bytes if device.context_bytes else 0)
    return Share(
        limit=device.name,
        limit_bytes=device.usable_bytes,
        share=float((live <= room).mean()) if len(live) else 0.0,
    )


def _forecast(spec: SearchSpec, step: Step) -> Forecast:
    """The forecast that answers for the step.

    Raises:
        UserError: with what is wrong with model, data and devices.
    """
    target = "cuda" if step.gpus else choose_device("auto").type
    check_sizes(spec.model)
    if step.reads_data:
        _check_readable(spec.model)
        forecast = open_forecast(spec, target)
        if step.rows is not None:
            forecast = forecast.at(replace(forecast.setup, rows=step.rows))
        _check_room(step, forecast.layout, forecast.setup.tokens)
        return forecast
    task = ANY_TEXT if step.task is TaskName.CAUSAL_LM else ANY_TASK
    rows = step.rows or spec.training.batch_size
    forecast = forecast_at(spec, task, rows, step.tokens, padded=step.padded, target=target)
    _check_room(step, forecast.layout, forecast.setup.tokens)
    return forecast


def _check_readable(model: ModelSpec) -> None:
    """Raises UserError for a config alone: without a tokenizer nobody knows the length of rows."""
    folder = Path(model.source).expanduser()
    if (folder / "config.json").is_file() and not weight_files(folder):
        found = f"'{model.source}' has a config alone, which turns no rows into tokens"
        raise UserError(Problem("--seq", found, "1 and more", "Say --seq: then the config is enough."))


def _check_room(step: Step, layout: ModelLayout, tokens: int) -> None:
    """Raises UserError for lengths that the model does not take, and for sizes that not even its weights fit into."""
    problems = []
    if layout.max_positions is not None and tokens > layout.max_positions:
        found = f"the model takes no rows of {tokens} tokens"
        problems.append(Problem("--seq", found, f"1 to {layout.max_positions}"))
    for device in step.devices:
        if device.capability is None and device.memory_bytes <= layout.weights_bytes:
            where = device.name if not device.context_bytes else "--device"
            problems.append(
                Problem(
                    where,
                    f"{device.memory_bytes / 2**30:.2f} GiB is less than the base model's weights alone",
                    f"more than {layout.weights_bytes / 2**30:.2f} GiB",
                    "Give more, or choose a smaller model, a smaller --dtype or --load-in.",
                )
            )
    if problems:
        raise UserError(*problems)


def _training(spec: SearchSpec, forecast: Forecast) -> Training:
    setup = forecast.setup
    return Training(
        model=spec.model.source,
        task=forecast.layout.task.value,
        batch=setup.rows,
        seq=setup.tokens,
        padded=setup.padded,
        dtype=forecast.dtypes,
        load_in=spec.model.load_in,
        target=setup.target,
        attention=forecast.attention,
        optimizer=setup.optimizer,
        gradient_checkpointing=setup.checkpointing,
        held_outputs=setup.holds_outputs,
    )


@contextmanager
def _traceable(where: str) -> Iterator[None]:
    """Turns what a library raises on a model without weights into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        short = first if len(first) <= _LONGEST else first[:_LONGEST] + " ..."
        found = f"it cannot be traced without weights ({type(error).__name__}: {short})"
        raise UserError(Problem(where, found, "", "Its memory must be measured.")) from error


def _workspace(step: Step, target: str) -> int:
    """Of the first GPU that is named, or of any, where a GPU computes."""
    if target != "cuda":
        return 0
    return next((device for device in step.devices if device.context_bytes), DEFAULT).workspace_bytes


def _answered(predict: Predict, configuration: str, training: Training, step: Step, notices: Sequence[str]) -> Estimate:
    """The estimate at the asked batch, or at the largest that fits the first device, and how it fits each."""
    workspace = _workspace(step, training.target)

    def needs(device: Device, rows: int) -> tuple[int, int | None]:
        """Live and reserved bytes of a device; a limit is on live ones."""
        own = device.workspace_bytes if device.context_bytes else workspace
        found = predict(rows, own)
        reserved = found.train_peak_reserved_bytes if device.context_bytes else None
        return found.train_peak_bytes + own, reserved

    def wanted(device: Device, rows: int) -> int:
        live, reserved = needs(device, rows)
        return live if reserved is None else reserved

    fits = []
    for device in step.devices:
        rows = training.batch
        if step.largest:
            most = largest_batch(partial(wanted, device), device.usable_bytes)
            if most is None:
                fits.append(DeviceFit.of(device, None, *needs(device, 1)))
                continue
            rows = most
        fits.append(DeviceFit.of(device, rows, *needs(device, rows)))
    if step.largest:
        training = training.model_copy(update={"batch": fits[0].batch or 1})
    found = predict(training.batch, workspace)
    if training.target != "cuda":
        found = found.model_copy(update={"train_peak_reserved_bytes": None})
    return Estimate.of(configuration, training, found, workspace, tuple(fits), tuple(notices))
