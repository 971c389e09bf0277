"""A cluster that cannot be used is named at once, before Ray starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from autopeft.cluster import ray_session
from autopeft.domain.errors import UserError
from autopeft.domain.ports import Resources


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_without_a_usable_cluster_is_the_users_mistake(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    address = address.format(port=free_port())
    resources = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0, ray_address=address)
    with pytest.raises(UserError) as caught, ray_session.ray_session(resources):
        pass
    (problem,) = caught.value.problems
    assert problem.where == "resources.ray_address"
    assert address in problem.found
    assert problem.next_step


def test_a_worker_that_fits_no_node_is_the_users_mistake() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    fits = Resources(workers=1, cpus_per_worker=4, gpus_per_worker=0)
    ray_session._check_room(fits, nodes)
    for asked in ({"cpus_per_worker": 5, "gpus_per_worker": 0}, {"cpus_per_worker": 1, "gpus_per_worker": 0.5}):
        with pytest.raises(UserError, match="at most 4 CPUs and 0 GPUs"):
            ray_session._check_room(Resources(workers=1, **asked), nodes)


def test_scratch_folders_of_killed_searches_are_deleted_and_those_of_live_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "_LONGEST_FOLDER", 1000)
    monkeypatch.setattr(ray_session.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(ray_session.psutil, "pid_exists", lambda pid: pid == os.getpid())
    dead, alive, foreign = (
        tmp_path / "autopeft-999-a",
        tmp_path / f"autopeft-{os.getpid()}-b",
        tmp_path / "autopeft-x-y",
    )
    for folder in (dead, alive, foreign):
        folder.mkdir()
    made = ray_session._scratch_folder()
    assert made.parent == tmp_path
    assert [folder.is_dir() for folder in (dead, alive, foreign, made)] == [False, True, True, True]
