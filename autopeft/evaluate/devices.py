"""What this machine computes with."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import torch

from autopeft.domain.devices import CONTEXT_BYTES


@dataclass(frozen=True)
class DeviceFacts:
    """Cores, memory and GPUs that this process may use."""

    cores: int
    memory_bytes: int
    """Main memory."""
    gpus: int
    gpu_names: tuple[str, ...]
    gpu_memory_bytes: tuple[int, ...]


def devices() -> DeviceFacts:
    """Look at this machine."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts = [torch.cuda.get_device_properties(index) for index in range(gpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return DeviceFacts(
        cores=cores,
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus,
        gpu_names=tuple(str(fact.name) for fact in facts),
        gpu_memory_bytes=tuple(int(fact.total_memory) for fact in facts),
    )


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU; other names are torch's own."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def limit_share(device: torch.device, share: float | None) -> None:
    """Keep this process within its share of a GPU, so that no neighbour's trial can take what a fitting one needs.

    Each process also holds a context of its own beside what its allocator takes; that is subtracted. A share of None,
    0, or 1 and more limits nothing, and neither does anything on the CPU.
    """
    if device.type != "cuda" or share is None or not 0 < share < 1:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(worker_bytes(total, share) / total, device)


def worker_bytes(gpu_bytes: int, share: float) -> int:
    """What the allocator of a worker may hold of a GPU, of which the worker has this share; at most the whole one.

    The rest of its share is the process's own context, of at most half of it.
    """
    whole = min(share, 1.0) * gpu_bytes
    return int(max(whole - CONTEXT_BYTES, whole / 2))


def device_name(device: torch.device) -> str:
    """`cpu`, or what the GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
