"""`autopeft estimate`: the memory of a training, and how long a budget lasts, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from autopeft.cli.options import Json
from autopeft.cli.search import DATA, RUN, SPACE, spec_from
from autopeft.cli.tables import configuration_text, output, print_json
from autopeft.domain.devices import Device, devices_of, limit_of
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.layout import TaskName
from autopeft.domain.spec import DTYPES, SearchSpec

if TYPE_CHECKING:
    from autopeft.app.estimating import Step

SCRIPT, STEP = "A script of transformers and peft", "The step"
TASKS = {"classification": TaskName.SEQUENCE_CLASSIFICATION, "causal-lm": TaskName.CAUSAL_LM}
SAMPLE = 64


def command(
    spec: Annotated[Path | None, typer.Argument(metavar="[SPEC]", help="YAML file; flags change what it says.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="minilm, a folder (a config.json is enough) or a hub id.", rich_help_panel=DATA, show_default=False
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.", rich_help_panel=DATA)] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of the frozen weights: bf16, fp16, fp32.", rich_help_panel=DATA)
    ] = None,
    load_in: Annotated[
        str | None, typer.Option(help="4bit or 8bit: hold the frozen weights in so few bits.", rich_help_panel=DATA)
    ] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option(
            "--trust-remote-code", help="Let code of the model run.", rich_help_panel=DATA, show_default=False
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classification or causal-lm, where no rows say it.", rich_help_panel=DATA)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Rows that decide batch and length, as in a search.", rich_help_panel=DATA)
    ] = None,
    train: Annotated[str | None, typer.Option(help="The same, as files.", rich_help_panel=DATA, metavar="FILE")] = None,
    validation: Annotated[str | None, typer.Option(rich_help_panel=DATA, metavar="FILE", help="With --train.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Name or YAML file; see `autopeft spaces`.", rich_help_panel=SPACE)
    ] = None,
    candidate: Annotated[
        Path | None,
        typer.Option(help="candidate.yaml or recipe.yaml: this one alone.", rich_help_panel=SPACE, metavar="FILE"),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Candidates of the space that are looked at.", rich_help_panel=SPACE)
    ] = SAMPLE,
    seed: Annotated[int | None, typer.Option(help="Of the draws.", rich_help_panel=SPACE)] = None,
    peft_config: Annotated[
        str | None,
        typer.Option(
            help="adapter_config.json of a plain script, or none for full fine-tuning.",
            rich_help_panel=SCRIPT,
            metavar="FILE|none",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The same as --peft-config none.", rich_help_panel=SCRIPT)
    ] = False,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, adamw-8bit, sgd or sgd-momentum.", rich_help_panel=SCRIPT)
    ] = None,
    attention: Annotated[str | None, typer.Option(help="sdpa or eager.", rich_help_panel=SCRIPT)] = None,
    autocast_adapter_dtype: Annotated[
        bool | None,
        typer.Option(help="Adapters in float32, as peft has it by default.", rich_help_panel=SCRIPT),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Rows, or auto: the most that fit.", rich_help_panel=STEP, metavar="N|auto")
    ] = None,
    seq: Annotated[int | None, typer.Option(min=1, help="Tokens of the longest row.", rich_help_panel=STEP)] = None,
    padding: Annotated[
        bool, typer.Option("--padding/--no-padding", help="Whether rows differ in length.", rich_help_panel=STEP)
    ] = True,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Less memory, a third more time.", rich_help_panel=STEP)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where it shall fit: a100-40g,l40s,h100,rtx4090,24GiB ...", rich_help_panel=STEP, metavar="NAMES"
        ),
    ] = None,
    max_memory: Annotated[str | None, typer.Option(help="Limit on live bytes, as 12GiB.", rich_help_panel=STEP)] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Train a few steps for real: how long a budget lasts.", rich_help_panel=RUN),
    ] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="With --probe: 64, 2h, 8gpu-h ...", rich_help_panel=RUN)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="With --probe: trials at once.", rich_help_panel=RUN)] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="With --probe: GPUs of each.", rich_help_panel=RUN)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the spec, as training.clip_norm=null."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a training will take, before it is tried: of one configuration, or of a whole space.

    All numbers of memory are predicted, from the model's config alone; nothing is trained without --probe.
    """
    script = {"--optimizer": optimizer, "--attention": attention, "--autocast-adapter-dtype": autocast_adapter_dtype}
    elsewhere = {"SPEC": spec, "--space": space, "--candidate": candidate, "--data": data, "--train": train}
    both = [Problem("--full", "trains every weight; --peft-config names others", "", "Leave out one of them.")]
    problems = both if full and peft_config is not None else []
    peft_config = "none" if full else peft_config
    problems += _mixed(peft_config is not None, script, elsewhere, probe)
    of_probe = {"--budget": budget, "--workers": workers, "--gpus-per-worker": gpus_per_worker}
    if not probe:
        text = "is for the time that a search takes, which only a probe tells"
        said = [name for name, value in of_probe.items() if value is not None]
        problems += [Problem(name, text, "", "Add --probe, or leave it out.") for name in said]
    if seq is not None and not probe and peft_config is None:
        rows_of = {"--data": data, "--train": train, "--validation": validation}
        text = "is not read where --seq says how long the rows are"
        said = [name for name, value in rows_of.items() if value is not None]
        problems += [Problem(name, text, "", "Leave one of the two out.") for name in said]
    problems += _unknown_names(task, optimizer, attention)
    devices: tuple[Device, ...] = ()
    rows, largest = None, batch == "auto"
    try:
        devices += devices_of(device) if device else ()
    except UserError as error:
        problems += error.problems
    try:
        devices += (limit_of(max_memory, "--max-memory"),) if max_memory else ()
    except UserError as error:
        problems += error.problems
    if batch is not None and not largest:
        if batch.isdigit() and int(batch) > 0:
            rows = int(batch)
        else:
            problems.append(Problem("--batch", f"'{batch}' is no number of rows", "1 and more, or auto"))
    flags: dict[str, Any] = {
        "model": {
            "source": model,
            "revision": revision,
            "dtype": None if dtype is None else DTYPES.get(dtype, dtype),
            "load_in": load_in,
            "trust_remote_code": trust_remote_code,
        },
        "data": {"source": data, "train": train, "validation": validation},
        "space": space,
        "seed": seed,
        "budget": budget,
        "training": {"batch_size": rows, "gradient_checkpointing": gradient_checkpointing},
        "resources": {"workers": workers, "gpus_per_worker": gpus_per_worker},
    }
    wanted: SearchSpec | None = None
    try:
        wanted = spec_from(spec, flags, settings or [])
    except UserError as error:
        problems += error.problems
    if problems or wanted is None:
        raise UserError(*problems)
    if wanted.max_memory is not None:
        devices += (Device("max_memory", "max_memory of the spec", wanted.max_memory, context_bytes=0),)
    from autopeft.app.estimating import Step

    step = Step(
        rows=rows,
        largest=largest,
        tokens=seq,
        padded=padding,
        task=TASKS[task or "classification"],
        reads_data=seq is None and (spec is not None or data is not None or train is not None),
        devices=devices,
    )
    if peft_config is not None:
        _script(wanted, peft_config, step, task, optimizer, attention, autocast_adapter_dtype, json)
    else:
        _search(wanted, candidate, step, sample, probe, json)


def _script(
    spec: SearchSpec,
    peft: str,
    step: Step,
    task: str | None,
    optimizer: str | None,
    attention: str | None,
    in_float32: bool | None,
    json: bool,
) -> None:
    from autopeft.app.estimating import ScriptSpec, estimate_script
    from autopeft.cli.estimate_tables import show_estimate

    asked = ScriptSpec(
        model=spec.model,
        peft=peft,
        task=None if task is None else TASKS[task],
        optimizer=optimizer or "adamw",
        attention=attention or "sdpa",
        gradient_checkpointing=spec.training.gradient_checkpointing,
        adapters_in_float32=in_float32 is not False,
    )
    found = estimate_script(asked, step)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        show_estimate(output(), found)


def _search(spec: SearchSpec, candidate: Path | None, step: Step, sample: int, probe: bool, json: bool) -> None:
    from autopeft.app.estimating import estimate_candidate, estimate_space
    from autopeft.cli.estimate_tables import show_estimate, show_space, show_time

    console = output()
    values: dict[str, Any] = {}
    if candidate is not None:
        found = estimate_candidate(spec, candidate, step, configuration_text)
        values = found.model_dump(mode="json")
        if not json:
            show_estimate(console, found)
    else:
        with Progress(console=Console(stderr=True), transient=True, disable=json) as progress:
            bar = progress.add_task("predicting", total=sample)
            of_space = estimate_space(
                spec, step, sample, configuration_text, lambda done, total: progress.update(bar, completed=done)
            )
        values = of_space.model_dump(mode="json")
        if not json:
            show_space(console, of_space)
    if probe:
        from autopeft.app.probing import estimate_time

        if not json:
            Console(stderr=True).print("probing: a few steps are trained for real ...", style="dim")
        rows = step.rows or spec.training.batch_size
        training = spec.training.model_copy(update={"batch_size": rows})
        time = estimate_time(spec.model_copy(update={"training": training}), candidate)
        values["time"] = time.model_dump(mode="json")
        if not json:
            show_time(console, time)
    if json:
        print_json(values)


def _mixed(script: bool, of_script: dict[str, Any], elsewhere: dict[str, Any], probe: bool) -> list[Problem]:
    """Flags that do not go together."""
    if script:
        wrong = [name for name, value in elsewhere.items() if value is not None] + (["--probe"] if probe else [])
        text = "is for a search; --peft-config is a script of its own"
        return [Problem(name, text, "", "Leave out one of them.") for name in wrong]
    return [
        Problem(name, "is for a script; a search has its own", "", "Add --peft-config FILE, or leave it out.")
        for name, value in of_script.items()
        if value is not None
    ]


def _unknown_names(task: str | None, optimizer: str | None, attention: str | None) -> list[Problem]:
    known: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
        ("--task", task, tuple(TASKS)),
        ("--optimizer", optimizer, ("adamw", "adamw-8bit", "sgd", "sgd-momentum")),
        ("--attention", attention, ("sdpa", "eager")),
    )
    return [unknown(flag, said, names) for flag, said, names in known if said is not None and said not in names]
