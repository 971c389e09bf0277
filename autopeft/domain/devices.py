"""GPUs by name: how much of each a program can have, and what torch's libraries take of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autopeft.domain.errors import Problem, UserError, unknown

CONTEXT_BYTES = 600 << 20
"""What the driver and the libraries take of a GPU per process, outside torch's allocator. An estimate: it is some
hundred MiB and depends on driver, architecture and the kernels that are loaded."""
WORKSPACES = 2
"""cuBLAS has a workspace per thread that multiplies: one for the forward pass, one for autograd's backward pass."""
_WORKSPACE, _WORKSPACE_FROM_HOPPER = 8_519_680, 32 << 20
"""Bytes of each, by torch's defaults (`aten/src/ATen/cuda/CublasHandlePool.cpp`): `:4096:2:16:8` in KiB, and 32 MiB on
compute capability 9, 10 and 12. They count as allocated."""
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]i?b)", re.IGNORECASE)
_FACTORS = {letter: index for index, letter in enumerate("kmgt", start=1)}


@dataclass(frozen=True)
class Device:
    """One kind of GPU, or a size in bytes."""

    name: str
    title: str
    memory_bytes: int
    """All of it that the driver gives to programs."""
    capability: tuple[int, int] | None = None
    """Compute capability; None where only a size is known."""
    context_bytes: int = CONTEXT_BYTES
    """What of it is not for torch's allocator."""

    @property
    def workspace_bytes(self) -> int:
        """What cuBLAS holds in torch's allocator."""
        return WORKSPACES * (_WORKSPACE_FROM_HOPPER if (self.capability or (0, 0))[0] >= 9 else _WORKSPACE)

    @property
    def usable_bytes(self) -> int:
        """What is left for torch's allocator."""
        return self.memory_bytes - self.context_bytes


def _gib(value: float) -> int:
    return int(value * 2**30)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("t4", "NVIDIA T4", _gib(14.56), (7, 5)),
        Device("v100-16g", "NVIDIA V100 16 GB", _gib(15.77), (7, 0)),
        Device("v100-32g", "NVIDIA V100 32 GB", _gib(31.73), (7, 0)),
        Device("rtx3060", "NVIDIA GeForce RTX 3060 12 GB", _gib(11.62), (8, 6)),
        Device("rtx3090", "NVIDIA GeForce RTX 3090", _gib(23.56), (8, 6)),
        Device("a10", "NVIDIA A10", _gib(21.98), (8, 6)),
        Device("a10g", "NVIDIA A10G", _gib(21.98), (8, 6)),
        Device("a6000", "NVIDIA RTX A6000", _gib(47.40), (8, 6)),
        Device("a40", "NVIDIA A40", _gib(44.34), (8, 6)),
        Device("a100-40g", "NVIDIA A100 40 GB", _gib(39.38), (8, 0)),
        Device("a100-80g", "NVIDIA A100 80 GB", _gib(79.14), (8, 0)),
        Device("l4", "NVIDIA L4", _gib(21.95), (8, 9)),
        Device("l40s", "NVIDIA L40S", _gib(44.38), (8, 9)),
        Device("rtx4080", "NVIDIA GeForce RTX 4080", _gib(15.57), (8, 9)),
        Device("rtx4090", "NVIDIA GeForce RTX 4090", _gib(23.51), (8, 9)),
        Device("rtx6000-ada", "NVIDIA RTX 6000 Ada", _gib(47.40), (8, 9)),
        Device("h100", "NVIDIA H100 80 GB", _gib(79.10), (9, 0)),
        Device("h100-nvl", "NVIDIA H100 NVL 94 GB", _gib(93.10), (9, 0)),
        Device("h200", "NVIDIA H200", _gib(139.70), (9, 0)),
        Device("b200", "NVIDIA B200", _gib(178.30), (10, 0)),
        Device("rtx5090", "NVIDIA GeForce RTX 5090", _gib(31.36), (12, 0)),
    )
}
"""Memory as torch names it in its out-of-memory messages ("GPU 0 has a total capacity of 79.11 GiB"), the least that
public reports show, cut after two digits; drivers differ by about 0.2 GiB, and `nvidia-smi` shows up to 1 GiB more. Of
the A100 and H100, L40S, RTX 3090 and 4090, A10 and V100 such reports were seen; the others follow from what
`nvidia-smi` shows of them, less what it shows more than torch on their relatives."""
DEFAULT = Device("gpu", "a GPU before Hopper", 0)
"""Whose workspaces are counted where no device is named."""


def limit_of(text: str, where: str) -> Device:
    """A limit on live bytes alone, as a device that has nothing else to hold.

    Raises:
        UserError: as `parse_size`.
    """
    return Device(where, f"{where} {text}", parse_size(text, where), context_bytes=0)


def parse_size(text: str, where: str) -> int:
    """`24GiB`, `80 GB`, `512MiB` in bytes.

    Raises:
        UserError: where it has no unit or is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        digits = text.strip().replace(".", "", 1).isdigit()
        said = f"'{text}' has no unit" if digits else f"'{text}' is not a size"
        raise UserError(Problem(where, said, "KiB, MiB, GiB, TiB; kB, MB, GB, TB", "For example: 24GiB."))
    unit = found["unit"].lower()
    return int(float(found["number"]) * (1024 if "i" in unit else 1000) ** _FACTORS[unit[0]])


def devices_of(text: str, where: str = "--device") -> tuple[Device, ...]:
    """`a100-40g,rtx4090,24GiB` as devices.

    Raises:
        UserError: with every name that is not known and every size without a unit.
    """
    found: list[Device] = []
    problems: list[Problem] = []
    for part in (one.strip() for one in text.split(",")):
        known = DEVICES.get(part.lower())
        if known is not None:
            found.append(known)
        elif part[:1].isdigit():
            try:
                found.append(Device(part, part, parse_size(part, where)))
            except UserError as error:
                problems += error.problems
        elif part:
            problems.append(unknown(where, part, DEVICES, "Or give its memory, for example 24GiB."))
    if problems:
        raise UserError(*problems)
    if not found:
        raise UserError(Problem(where, "names no device", ", ".join(DEVICES), "Or give a size, for example 24GiB."))
    return tuple(dict.fromkeys(found))
