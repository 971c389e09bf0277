"""Devices by name, sizes with units, and the largest batch that fits."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from autopeft.app.batches import MOST, largest_batch
from autopeft.app.spec_file import make_spec
from autopeft.domain.devices import DEVICES, Device, devices_of, limit_of, parse_size
from autopeft.domain.errors import UserError
from autopeft.domain.estimate import DeviceFit
from autopeft.domain.spec import PredictForSpec


def test_devices_go_by_name_or_by_size_and_each_counts_once() -> None:
    found = devices_of("A100-40g, l40s,h100,rtx4090,24GiB,l40s")
    assert [one.name for one in found] == ["a100-40g", "l40s", "h100", "rtx4090", "24GiB"]
    assert found[-1].memory_bytes == 24 << 30
    assert all(one.usable_bytes == one.memory_bytes - one.context_bytes for one in found)


def test_workspaces_are_those_of_torch() -> None:
    # `aten/src/ATen/cuda/CublasHandlePool.cpp`: `:4096:2:16:8` (KiB) for each of two threads, from Hopper on 32 MiB.
    assert DEVICES["rtx4090"].workspace_bytes == 2 * (4096 * 2 + 16 * 8) * 1024
    assert DEVICES["h100"].workspace_bytes == 2 * (32 << 20)


def test_an_unknown_device_is_named_with_those_that_are_known_and_how_to_give_bytes() -> None:
    with pytest.raises(UserError) as refused:
        devices_of("l40z,24,h100")
    first, second = refused.value.problems
    assert "l40z" in first.found
    assert all(name in first.allowed for name in DEVICES)
    assert "l40s" in first.next_step
    assert "24GiB" in first.next_step
    assert "no unit" in second.found
    with pytest.raises(UserError, match="names no device"):
        devices_of(" , ")


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 << 30), ("80 GB", 80 * 10**9), ("512mib", 512 << 20), ("1.5kB", 1500)]
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text, "--max-memory") == size


@pytest.mark.parametrize(("text", "says"), [("24", "has no unit"), ("24XB", "not a size"), ("-1GiB", "not a size")])
def test_sizes_without_a_unit_are_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        limit_of(text, "--max-memory")
    assert "GiB" in refused.value.problems[0].allowed


def test_a_search_s_spec_checks_both_too() -> None:
    with pytest.raises(UserError) as refused:
        make_spec({"max_memory": "12", "predict_for": "model=x,seq=8,device=l40z"})
    where = {problem.where: problem.found for problem in refused.value.problems}
    assert "needs a unit" in where["max_memory"]
    assert "l40s" in where["predict_for.device"]
    assert "24GiB" in where["predict_for.device"]
    for device in ("cpu", "cuda", "a100-40g", "24GiB"):
        assert PredictForSpec(model="x", seq=8, device=device).device == device
    with pytest.raises(ValidationError):
        PredictForSpec(model="x", seq=8, device="gpu")
    spec = make_spec({"max_memory": "12GiB"})
    assert spec.max_memory == 12 << 30
    assert make_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(("fixed", "per_row", "square"), [(100, 7, 0.0), (0, 1, 0.0), (50, 3, 0.5), (1000, 400, 0.0)])
@pytest.mark.parametrize("limit", [90, 120, 1000, 4321, 10_000])
@pytest.mark.parametrize("step", [1, 16])
def test_the_largest_batch_is_the_one_that_trying_each_finds(
    fixed: int, per_row: int, square: float, limit: int, step: int
) -> None:
    asked: list[int] = []

    def needs(rows: int) -> int:
        asked.append(rows)
        return fixed + -(-rows // step) * step * per_row + int(square * rows * rows)

    found = largest_batch(needs, limit)
    tries = len(asked)
    fitting = [rows for rows in range(1, limit + 2) if needs(rows) <= limit]
    assert found == (max(fitting) if fitting else None)
    assert tries <= 24


def test_a_batch_that_costs_nothing_ends_somewhere() -> None:
    assert largest_batch(lambda rows: 1, 10) == MOST


def test_a_device_is_judged_by_what_the_allocator_holds() -> None:
    gpu = Device("gpu", "a GPU", memory_bytes=1000, context_bytes=100)
    assert DeviceFit.of(gpu, 4, 700, 900).verdict == "fits"
    tight = DeviceFit.of(gpu, 4, 700, 901)
    assert (tight.verdict, tight.free_bytes) == ("tight", -1)
    assert DeviceFit.of(gpu, 4, 901, 1200).verdict == "no"
    assert DeviceFit.of(gpu, 4, 900, None).verdict == "fits"
