"""What a worker must survive: full memory under many names, shared GPUs, a check that fails, a disk that is cut off."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.domain.errors import UserError
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate import devices, pipeline, train
from autopeft.evaluate.outcomes import is_out_of_memory
from autopeft.evaluate.untouched import Untouched, tensor_sum
from tests.unit.evaluate_trials import opened, run, spec_of, task_of


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: Out Of Memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        torch.OutOfMemoryError("anything"),
        MemoryError(),
    ],
)
def test_full_memory_is_known_by_all_its_names(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory, says the user's own file"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_base_model_that_does_not_fit_is_the_users_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    spec = spec_of(tmp_path)
    monkeypatch.setattr(pipeline, "load_base_model", full)
    with pytest.raises(UserError, match="the base model does not fit into main memory"):
        opened(spec)


def test_a_bug_while_opening_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("by hand")

    spec = spec_of(tmp_path)
    monkeypatch.setattr(pipeline, "load_base_model", broken)
    with pytest.raises(RuntimeError, match="by hand"):
        opened(spec)


def test_a_check_that_fails_asks_for_a_new_worker_and_keeps_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = opened(spec_of(tmp_path, training={"steps": 2}))

    def fails(_: Untouched) -> list[str]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(Untouched, "differences", fails)
    outcome, _ = run(evaluator, task_of(evaluator, tmp_path))
    assert outcome.status is TrialStatus.COMPLETE
    assert outcome.recycle_worker
    assert outcome.measurements is not None
    assert outcome.measurements.quality


class Largest(TorchDispatchMode):
    """The most elements that one sum reads."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "sum" in str(func):
            self.elements = max(self.elements, args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_a_checksum_copies_small_pieces_and_sees_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.zeros((1 << 22) + 3, dtype=dtype)
    with Largest() as largest:
        before = tensor_sum(tensor)
    assert largest.elements == 1 << 22
    tensor[-1] = 1
    assert tensor_sum(tensor) != before
    assert tensor_sum(torch.zeros(0)) == 0
    assert tensor_sum(torch.tensor(1.0)) != tensor_sum(torch.tensor(2.0))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_worker_fills_its_share_of_a_gpu_at_most(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    total, limits = 80 << 30, []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: limits.append(part))
    devices.limit_share(torch.device("cuda", 0), share)
    assert len(limits) == 1
    assert 0.9 * share < limits[0] < share, "the share, less the process's own context"


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.5), ("cuda:0", None), ("cuda:0", 0.0), ("cuda:0", 1.0)])
def test_a_whole_gpu_or_none_is_not_limited(monkeypatch: pytest.MonkeyPatch, device: str, share: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: pytest.fail("it is"))
    devices.limit_share(torch.device(device), share)


def test_the_share_reaches_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(pipeline, "limit_share", lambda device, share: seen.append((device.type, share)))
    spec = spec_of(tmp_path).model_dump(mode="json")
    pipeline.open_evaluator(spec, device="cpu", gpu_share=0.5).close()
    assert seen == [("cpu", 0.5)]


def test_an_adapter_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = opened(spec_of(tmp_path, training={"steps": 2}))
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(old: Any, new: Any) -> None:
        if str(new).endswith("artefact-0"):
            done.append("renamed")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    outcome, _ = run(evaluator, task_of(evaluator, tmp_path))
    assert outcome.status is TrialStatus.COMPLETE
    before, after = done[: done.index("renamed")], done[done.index("renamed") + 1 :]
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(before)
    assert before[-1].startswith(".artefact-0."), "the folder comes after its files"
    assert after == [tmp_path.name]


def test_the_clock_of_a_rung_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = opened(spec_of(tmp_path, training={"steps": 6}))
    waited: list[int] = []
    steps: list[int] = []
    step = train.Training._step

    def counted(training: train.Training, number: int) -> tuple[float, int]:
        steps.append(number + 1)
        return step(training, number)

    monkeypatch.setattr(train.Training, "_step", counted)
    monkeypatch.setattr(train, "wait", lambda _: waited.append(steps[-1]))
    _, rungs = run(evaluator, task_of(evaluator, tmp_path))
    assert waited == [rung.step for rung in rungs] == [3, 6]
