"""The search over Ray Tune workers, on this machine or on a running cluster."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.interruption import Interrupted, Interruption
from autopeft.cluster.local_runner import INTERRUPTED
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.ports import EvaluatorRef, Resources

OBJECT_STORE_BYTES = 80 << 20
"""Ray asks for at least 75 MiB; nothing large travels."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}


class RayRunner:
    """Runs `resources.workers` trials at once, each in a Ray actor that keeps its evaluator."""

    def __init__(self, evaluator: EvaluatorRef, resources: Resources) -> None:
        self._reference = evaluator
        self._resources = resources

    def run(self, campaign: Campaign) -> RunEnd:
        """Open the campaign, run it to its end or to the first Ctrl-C, close it.

        Raises:
            RunBusyError: where another process has the run.
            UserError: where no node of the cluster has room for one worker, or the evaluator cannot be built.
        """
        with Interruption() as interruption:
            campaign.open()
            try:
                with ray_session(self._resources) as scratch:
                    try:
                        return self._tune(campaign, interruption, scratch)
                    finally:
                        # Before Ray is left, which takes seconds: a second Ctrl-C then finds nothing running.
                        campaign.release_running()
            except Interrupted:
                return RunEnd(INTERRUPTED, interrupted=True)
            finally:
                campaign.close()

    def _tune(self, campaign: Campaign, interruption: Interruption, scratch: Path) -> RunEnd:
        from ray import tune

        from autopeft.cluster.searcher import CampaignSearcher
        from autopeft.cluster.worker import Key, Worker

        searcher = CampaignSearcher(campaign, self._resources.workers)

        class Leaving(tune.Stopper):
            """Asked by Tune at every turn of its loop, outside of any `except`."""

            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                if searcher.error is not None or interruption.requested:
                    # Tune's own way out waits for the running steps; this leaves its loop as Ctrl-C would.
                    raise Interrupted
                return False

        try:
            tune.run(
                Worker,
                name="search",
                config={Key.EVALUATOR.value: self._reference.model_dump_json()},
                resources_per_trial={"cpu": self._resources.cpus_per_worker, "gpu": self._resources.gpus_per_worker},
                num_samples=-1,
                search_alg=searcher,
                stop=Leaving(),
                storage_path=str(scratch / "tune"),
                reuse_actors=True,
                raise_on_failed_trial=False,
                verbose=0,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
                _remote=False,
            )
        except Interrupted:
            if searcher.error is None:
                raise
        if searcher.error is not None:
            raise searcher.error
        return RunEnd(searcher.why or "Ray Tune ended the search.", interrupted=False)


@contextmanager
def ray_session(resources: Resources) -> Iterator[Path]:
    """Ray started for these workers, or the running cluster joined; gives a scratch folder that is deleted after.

    Raises:
        UserError: where the cluster has no room for one worker.
    """
    os.environ.update(_QUIET)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.workers)
    if resources.ray_address is None:
        # A cluster of our own is open to nobody without a token; one in the environment leaves no file behind.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    _silence()
    scratch = Path(tempfile.mkdtemp(prefix="autopeft-", dir=_short_folder()))
    try:
        ray.init(**_ray_options(resources, scratch))
        try:
            _check_room(resources, ray.nodes())
            yield scratch
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _ray_options(resources: Resources, scratch: Path) -> dict[str, Any]:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
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


def _check_room(resources: Resources, nodes: list[dict[str, Any]]) -> None:
    rooms = [node["Resources"] for node in nodes if node["Alive"]]
    asked = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    if not any(all(room.get(kind, 0.0) >= amount for kind, amount in asked.items()) for room in rooms):
        most = ", ".join(f"{max((room.get(kind, 0.0) for room in rooms), default=0.0):g} {kind}s" for kind in asked)
        raise UserError(
            Problem(
                "resources",
                f"no node of the Ray cluster has {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs for a worker",
                f"at most {most} on one node",
                "Ask for less per worker.",
            )
        )


def _silence() -> None:
    """Tune's warnings speak of its own files and of knobs that nobody here turns."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _short_folder() -> str | None:
    """Where Ray's sockets find room: their whole path must be shorter than 108 bytes, about 70 of them Ray's own."""
    default = tempfile.gettempdir()
    return None if len(default) <= 16 or not os.path.isdir("/tmp") else "/tmp"
