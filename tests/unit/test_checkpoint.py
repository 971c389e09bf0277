"""The checkpoint file: what is read is what was written, or it is refused, whatever happened to the file."""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from autopeft.evaluate import checkpoint
from autopeft.evaluate.checkpoint import CheckpointError, read_checkpoint, remove_unfinished, write_checkpoint

ROOT = Path(__file__).parents[2]


def state(seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(5, 3, generator=draw)
    return {
        "number": seed,
        "float": 0.1 + seed,
        "odd": [math.inf, True, None, "text"],
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, "by.name": {}}, "groups": [{"betas": (0.9, 0.999)}]},
        "weights": [weights, weights.T, weights[1:], weights.bfloat16()],
        "bytes": torch.get_rng_state(),
        "empty": torch.zeros(0, 4),
        "$odd key": {"inside": torch.tensor([True, False])},
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(same(mine, its) for mine, its in pairs)
    return type(one) is type(other) and one == other


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "trial" / "checkpoint"
    write_checkpoint(path, "me", state())
    back = read_checkpoint(path, "me")
    assert same(back, state() | {"bytes": back["bytes"]})
    assert torch.equal(back["bytes"], torch.get_rng_state())
    tensors = [*back["weights"], back["bytes"]]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    assert [one.name for one in path.parent.iterdir()] == ["checkpoint"]
    with safe_open(path, framework="pt") as file:  # nothing but safetensors and JSON
        assert set(file.metadata()) == {"checkpoint", "sha256"}


def test_of_something_else_or_of_no_kind_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    write_checkpoint(path, "me", state())
    with pytest.raises(CheckpointError, match="another candidate"):
        read_checkpoint(path, "you")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        with pytest.raises(CheckpointError, match="or version"):
            read_checkpoint(path, "me")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none", "me")
    with pytest.raises(TypeError, match="state/deep/1 is a set"):
        write_checkpoint(path, "me", {"deep": [1, {2}]})
    assert same(read_checkpoint(path, "me")["number"], 0), "the old one stays"


def test_whatever_happens_to_the_file_it_is_refused_or_whole(tmp_path: Path) -> None:
    path, draw = tmp_path / "checkpoint", random.Random(5)
    write_checkpoint(path, "me", state())
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    damaged: list[bytes] = [b"", b"\0", whole[:8], b"{}", whole[8:], whole + b"x", whole + whole]
    damaged += [whole[:cut] for cut in draw.sample(range(len(whole)), 60)]
    for place in [*range(8), *draw.sample(range(8, header), 120), *draw.sample(range(header, len(whole)), 120)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    for start in draw.sample(range(len(whole)), 40):
        hole = bytearray(whole)
        hole[start : start + 512] = bytes(len(hole[start : start + 512]))
        damaged.append(bytes(hole))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = read_checkpoint(path, "me")
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(("it is damaged: ", "it is of another"))  # noqa: PT017
        else:
            assert same(found, state() | {"bytes": found["bytes"]})
    assert refused >= len(damaged) - 45  # a hole of zeros may hit zeros


def test_a_write_that_fails_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    write_checkpoint(path, "me", state(1))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            write_checkpoint(path, "me", state(2))
    assert read_checkpoint(path, "me")["number"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint"]


def test_a_disk_that_takes_no_more_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write_checkpoint(path, "me", state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # python gets an error instead of a signal
    try:
        with pytest.raises(OSError, match="too large"):
            write_checkpoint(path, "me", {"large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(path, "me")["number"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint"]


WRITER = """
import sys
from pathlib import Path
from autopeft.evaluate.checkpoint import write_checkpoint
import torch
number = 0
while True:
    write_checkpoint(Path(sys.argv[1]), "me", {"number": number, "values": torch.full((200_000,), float(number))})
    number += 1
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_while_it_is_written_leaves_a_whole_one(tmp_path: Path) -> None:
    path, draw, last = tmp_path / "checkpoint", random.Random(2), -1
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = read_checkpoint(path, "me")
        assert torch.equal(found["values"], torch.full((200_000,), float(found["number"])))
        assert found["number"] >= 2 > last
    remove_unfinished(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint"]
