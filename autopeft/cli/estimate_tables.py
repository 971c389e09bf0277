"""Estimates as a person reads them: a table, bars, and where it fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autopeft.cli.tables import bytes_text, ranges, seconds_text
from autopeft.domain.estimate import DeviceFit, Estimate, Point, SpaceEstimate, TimeEstimate, Training

_PARTS = (
    ("weights_bytes", "weights of the base model", "blue"),
    ("peft_bytes", "PEFT weights", "cyan"),
    ("gradient_bytes", "gradients", "magenta"),
    ("optimizer_bytes", "optimiser state", "yellow"),
    ("activation_bytes", "saved activations", "green"),
    ("head_bytes", "logits and loss", "red"),
    ("temporary_bytes", "temporary", "white"),
    ("workspace_bytes", "workspace of cuBLAS", "bright_black"),
    ("inputs_bytes", "inputs", "bright_black"),
)
_VERDICTS = {"fits": ("fits", "green"), "tight": ("tight", "yellow"), "no": ("does not fit", "red")}
_ALWAYS = 6
"""The first so many are shown where they are nothing, too."""
_BAR = 60
"""Columns of the longest bar, however wide the terminal is."""
_LAYERS = 16
"""So many lines at most for the layers; equal neighbours share one."""
_FULL = "█"
_PARTIAL = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int) -> str:
    """A bar of a share of `width` columns, in eighths; a sliver for anything above nothing."""
    eighths = max(0, round(share * width * 8))
    if share > 0 and eighths == 0:
        eighths = 1
    whole, rest = divmod(eighths, 8)
    return _FULL * whole + (_PARTIAL[rest] if rest else "")


def show_estimate(console: Console, found: Estimate) -> None:
    """One configuration: its parts, its layers, and the devices."""
    _heading(console, found.configuration, found.training)
    console.print(
        f"predicted peak  [bold]{bytes_text(found.train_peak_bytes)}[/] live, in the {escape(found.where)}",
        soft_wrap=True,
    )
    if found.train_peak_reserved_bytes is not None:
        console.print(f"                {bytes_text(found.train_peak_reserved_bytes)} reserved by torch's allocator")
    console.print(f"trains          {found.trainable_parameters:,} parameters")
    console.print()
    width = min(_BAR, max(10, console.width - 50))
    largest = max(getattr(found, name) for name, _, _ in _PARTS)
    table = _plain()
    table.add_column("at the peak")
    for name in ("bytes", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for place, (name, title, style) in enumerate(_PARTS):
        value = getattr(found, name)
        if value or place < _ALWAYS:
            drawn = Text(bar(value / max(1, largest), width), style=style)
            table.add_row(title, bytes_text(value), f"{value / found.train_peak_bytes:.1%}", drawn)
    console.print(table)
    _layers(console, found.layer_activation_bytes)
    _devices(console, found.devices)
    for text in found.notices:
        console.print(escape(text), style="dim", soft_wrap=True)


def _layers(console: Console, saved: Sequence[int]) -> None:
    """What each layer keeps for its backward pass; neighbours that keep as much share a line."""
    runs: list[list[int]] = []
    for index, value in enumerate(saved):
        if runs and saved[runs[-1][0]] == value:
            runs[-1].append(index)
        else:
            runs.append([index])
    if not runs:
        return
    console.print()
    table = _plain()
    table.add_column("saved activations")
    table.add_column("each", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    most = max(1, *saved)
    width = min(_BAR, max(10, console.width - 42))
    for run in runs[:_LAYERS]:
        value = saved[run[0]]
        name = f"layer{'s' if len(run) > 1 else ''} {ranges(run)}"
        table.add_row(name, bytes_text(max(0, value)), Text(bar(max(0, value) / most, width), style="green"))
    if len(runs) > _LAYERS:
        table.add_row(f"and {len(runs) - _LAYERS} more", "", "")
    console.print(table)


def _devices(console: Console, devices: Sequence[DeviceFit]) -> None:
    if not devices:
        return
    console.print()
    table = _plain()
    table.add_column("device", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("batch", justify="right", no_wrap=True)
    table.add_column("needs", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in devices:
        word, style = _VERDICTS[one.verdict]
        wanted = one.train_peak_reserved_bytes or one.train_peak_bytes or 0
        left = one.free_bytes or 0
        table.add_row(
            one.device,
            bytes_text(one.memory_bytes),
            "none" if one.batch is None else str(one.batch),
            bytes_text(wanted),
            ("-" if left < 0 else "") + bytes_text(abs(left)),
            Text(word, style=style),
        )
    console.print(table)
    context = next((one.context_bytes for one in devices if one.context_bytes), 0)
    if context:
        console.print(
            f"Needs are predicted; {bytes_text(context)} of each GPU are taken off for its driver, an estimate.",
            style="dim",
        )
    if any(one.verdict == "tight" for one in devices):
        console.print("tight: live bytes fit, and what torch would like to cache beside them does not.", style="dim")


def show_space(console: Console, found: SpaceEstimate) -> None:
    """A space: distribution, what fits, smallest and largest."""
    _heading(console, f"space {found.space}", found.training)
    known = found.candidates - sum(found.unknown.values())
    console.print(f"{known} of {found.candidates} candidates drawn with seed {found.seed} have a prediction.")
    for reason, count in found.unknown.items():
        console.print(f"{count} without: {escape(reason)}", style="dim", soft_wrap=True)
    if not known:
        return
    console.print()
    table = _plain()
    table.add_column("predicted peak", no_wrap=True)
    table.add_column("candidates", justify="right")
    table.add_column("", no_wrap=True)
    most = max(one.count for one in found.histogram)
    for one in found.histogram:
        drawn = Text(bar(one.count / most, min(_BAR, max(10, console.width - 48))), style="green")
        table.add_row(f"{bytes_text(one.from_bytes)} to {bytes_text(one.to_bytes)}", str(one.count), drawn)
    console.print(table)
    console.print()
    names = {"0": "least", "0.5": "median", "0.95": "95 % below", "1": "most"}
    parts = [f"{name} {bytes_text(found.quantiles[key])}" for key, name in names.items() if key in found.quantiles]
    console.print(" · ".join(parts))
    for share in found.shares:
        console.print(f"{share.share:.0%} fit {escape(share.limit)} ({bytes_text(share.limit_bytes)} usable)")
    for name, point in (("smallest", found.smallest), ("largest", found.largest)):
        if point is not None:
            console.print(_point(name, point), soft_wrap=True)
    for text in found.notices:
        console.print(escape(text), style="dim", soft_wrap=True)


def _point(name: str, point: Point) -> str:
    return f"{name:<9}{bytes_text(point.train_peak_bytes)}  {escape(point.configuration)}"


def show_time(console: Console, found: TimeEstimate) -> None:
    """How long a budget lasts."""
    console.print()
    console.print(
        f"[bold]time[/]  measured on {escape(found.device)}: {found.probed} candidates, a few steps each, "
        f"in {seconds_text(found.probe_s)}; then extrapolated",
        soft_wrap=True,
    )
    each = f"{found.steps} steps of {found.step_s:.3g} s, and {found.fixed_s:.3g} s besides"
    console.print(f"a trial {seconds_text(found.trial_s)}: {each}", soft_wrap=True)
    gpus = f", {found.gpu_hours:.2f} GPU-hours" if found.gpu_hours else ""
    console.print(
        f"budget  {escape(found.budget)}: about {found.trials} trials in {seconds_text(found.wall_s)} "
        f"on {found.workers} worker{'s' if found.workers != 1 else ''}{gpus}",
        soft_wrap=True,
    )


def _heading(console: Console, what: str, training: Training) -> None:
    bits = f", {training.load_in}" if training.load_in else ""
    console.print(f"[bold]{escape(what)}[/]", soft_wrap=True)
    rows = f"{training.batch} x {training.seq} tokens" + ("" if training.padded else ", none padded")
    extra = ", gradient checkpointing" if training.gradient_checkpointing else ""
    model = escape(_below(training.model))
    console.print(
        f"{model} ({training.dtype}{bits}), {training.task}, {rows}, {training.optimizer}{extra}, "
        f"{training.attention} attention on {'a GPU' if training.target == 'cuda' else 'the CPU'}",
        style="dim",
    )
    console.print()


def _below(model: str) -> str:
    """A folder below the current one by its path from there."""
    here = Path.cwd()
    return str(Path(model).relative_to(here)) if Path(model).is_relative_to(here) else model


def _plain() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
