"""Ray started for one search and ended with it, or a running cluster joined: silent, closed to others, no traces."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.ports import Resources

OBJECT_STORE_BYTES = 80 << 20
"""Ray asks for at least 75 MiB; nothing large travels."""

CONNECT_S = 5.0

_PREFIX = "autopeft-"
_LONGEST_FOLDER = 16
"""Ray's sockets lie about 85 bytes below the temporary folder, and their paths must stay below 108."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
_OWN_CLUSTER = {
    # Open to nobody without a token; one in the environment leaves no file behind.
    "RAY_AUTH_MODE": "token",
    # Tune's actors have an environment of their own, so that workers started ahead of them would never be used.
    "RAY_prestart_worker_first_driver": "0",
}


@contextmanager
def ray_session(resources: Resources) -> Iterator[Path]:
    """Gives a scratch folder for Tune's own files, which is deleted at the end.

    Raises:
        UserError: where the cluster cannot be reached or has no room for one worker.
    """
    _set_environment(resources)
    if resources.ray_address is not None:
        _check_address(resources.ray_address)
    import ray
    import ray._private.worker
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    # Ray reads its environment when it is imported, which the caller may have done long before.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    # Ray prints a dead worker's story to standard output whatever its logging options say; the store tells it too.
    ray._private.worker._worker_logs_enabled = False
    scratch = _scratch_folder()
    try:
        try:
            ray.init(**_options(resources, scratch))
        except ConnectionError as error:
            raise _unreachable(str(resources.ray_address), error) from error
        try:
            _silence()
            _check_room(resources, ray.nodes())
            yield scratch
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _set_environment(resources: Resources) -> None:
    os.environ.update(_QUIET)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.workers)
    if resources.ray_address is None:
        os.environ.update(_OWN_CLUSTER)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _options(resources: Resources, scratch: Path) -> dict[str, Any]:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if resources.ray_address is not None:
        return {"address": resources.ray_address, **quiet}
    return {
        "address": "local",
        # Logical: workers share the machine's cores as the threads they were given say.
        "num_cpus": max(1, math.ceil(resources.workers * resources.cpus_per_worker)),
        "num_gpus": 0 if resources.gpus_per_worker == 0 else None,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": str(scratch),
        **quiet,
    }


def _silence() -> None:
    """Tune reports every trial that ended an actor as an error of its own; real errors reach the runner raised."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _check_address(address: str) -> None:
    """Ray itself would try for minutes, and print about it.

    Raises:
        UserError: where nothing listens at `host:port`, or the address is one of Ray Client, whose driver runs on the
            cluster, away from the run folder.
    """
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise UserError(
            Problem(
                "resources.ray_address",
                f"'{address}' is an address of Ray Client",
                "'auto', or host:port of a running cluster",
                "Run the search on a machine of the cluster, with --ray-address auto.",
            )
        )
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> UserError:
    return UserError(
        Problem(
            "resources.ray_address",
            f"no Ray cluster answers at '{address}': {(str(error).splitlines() or [''])[0]}",
            "'auto', or host:port of a running cluster",
            "Start one with `ray start --head`, or leave the address out.",
        )
    )


def _check_room(resources: Resources, nodes: list[dict[str, Any]]) -> None:
    rooms = [node["Resources"] for node in nodes if node["Alive"]]
    asked = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    if any(all(room.get(kind, 0.0) >= amount for kind, amount in asked.items()) for room in rooms):
        return
    most = " and ".join(f"{max((room.get(kind, 0.0) for room in rooms), default=0.0):g} {kind}s" for kind in asked)
    raise UserError(
        Problem(
            "resources",
            f"no node of the Ray cluster has {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs for a worker",
            f"at most {most} on one node",
            "Ask for less per worker.",
        )
    )


def _scratch_folder() -> Path:
    """A fresh folder named after this process; those of processes that were killed are deleted."""
    default = tempfile.gettempdir()
    parent = Path(default if len(default) <= _LONGEST_FOLDER or not os.path.isdir("/tmp") else "/tmp")
    for left in parent.glob(f"{_PREFIX}*-*"):
        owner = re.match(rf"{_PREFIX}(\d+)-", left.name)
        if owner and left.stat().st_uid == os.getuid() and not psutil.pid_exists(int(owner[1])):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
