"""The search over Ray Tune workers, on this machine or on a running cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.interruption import Interrupted, Interruption
from autopeft.cluster.local_runner import INTERRUPTED
from autopeft.cluster.ray_session import ray_session
from autopeft.domain.ports import EvaluatorRef, Resources


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
                done = campaign.done()
                if done is not None:
                    return RunEnd(done.why, interrupted=False)
                with ray_session(self._resources) as scratch:
                    # Ray puts its own handler on SIGTERM when it starts.
                    interruption.take()
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

        from autopeft.cluster.pausing import PauseFlag
        from autopeft.cluster.searcher import CampaignSearcher, RungScheduler
        from autopeft.cluster.worker import Key, Worker

        searcher, flag = CampaignSearcher(campaign, self._resources.workers), PauseFlag()

        class Leaving(tune.Stopper):
            """Asked by Tune at every turn of its loop, outside of any `except`."""

            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                if interruption.requested:
                    searcher.leaving = True
                    flag.set()
                if searcher.error is not None or (searcher.leaving and (searcher.all_paused or flag.overdue)):
                    # Tune's own way out waits for the running steps; this leaves its loop as Ctrl-C would.
                    raise Interrupted
                return False

        try:
            tune.run(
                Worker,
                name="search",
                config={Key.EVALUATOR.value: self._reference.model_dump_json(), Key.PAUSE.value: flag.name},
                resources_per_trial={"cpu": self._resources.cpus_per_worker, "gpu": self._resources.gpus_per_worker},
                num_samples=-1,
                search_alg=searcher,
                scheduler=RungScheduler(searcher),
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
        finally:
            flag.clear()
        if searcher.error is not None:
            raise searcher.error
        return RunEnd(searcher.why or "Ray Tune ended the search.", interrupted=False)
