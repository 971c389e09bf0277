"""Small runs to test with: records, candidates, outcomes and whole results, made without a model."""

import time
from pathlib import Path

from autopeft.objectives.accuracy import objective as accuracy
from autopeft.objectives.train_peak_bytes import objective as train_peak_bytes

from autopeft.domain.budget import Spent
from autopeft.domain.candidate import Candidate, Insertion, Policy, Pruning
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory, Rung
from autopeft.domain.ports import Proposal
from autopeft.domain.results import Front, Provenance, RunRecord, RunResults, TaskInfo, score
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Failure, FailureReason, Outcome, Trial, TrialStatus

OBJECTIVES = (accuracy, train_peak_bytes)
LAYOUT = ModelLayout(
    model_type="bert",
    hidden_size=8,
    heads=2,
    kv_heads=2,
    layers=tuple(
        LayerLayout(
            index=index,
            path=f"bert.encoder.layer.{index}",
            modules=(
                ModuleLayout(role=Role.QUERY, path=f"bert.encoder.layer.{index}.q", in_features=8, out_features=8),
            ),
        )
        for index in range(2)
    ),
    head_paths=("classifier",),
    parameters=1000,
    weights_bytes=4000,
    max_positions=512,
)
TASK = TaskInfo(
    kind="classification",
    labels=("mail", "web"),
    metric="accuracy",
    metrics=("accuracy", "f1"),
    rows={"train": 100, "validation": 40, "test": 40},
    majority_share=0.5,
)
PROVENANCE = Provenance(
    versions={"python": "3.11.2", "peft": "0.21.2"},
    machine="a processor, 2 cores",
    data_fingerprint="0123456789abcdef",
    model_fingerprint="fedcba9876543210",
)


def spec_of(**more):
    """A spec for a model folder and two files, with what `more` changes."""
    data = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
    return SearchSpec.model_validate({"model": "models/tiny", "data": data, "budget": "40", **more})


def record_of(name="a-run", task=TASK, created_at=1000.0, **spec):
    """The record of a run of this name."""
    return RunRecord(
        name=name,
        spec=spec_of(name=name, **spec),
        layout=LAYOUT,
        task=task,
        provenance=PROVENANCE,
        created_at=created_at,
    )


def candidate_of(index, rank=4):
    """A candidate with every field filled, which differs from those of other indices in its learning rate."""
    insertion = Insertion(
        method="lora", layers=(0, 1), modules=("attention.query",), settings={"rank": rank, "dropout": 0.1}
    )
    return Candidate(
        insertions=(insertion,),
        learning_rate=1e-4 * (index + 1),
        pruning=Pruning(criterion="light-peft", settings={"heads": 0.25, "ffn_scope": "layer"}),
        policy=Policy(name="ist", settings={"trained": 0.5}),
    )


def proposal_of(index):
    """What a sampler would hand over for `candidate_of(index)`."""
    candidate = candidate_of(index)
    parameters = {"variant": "lora", "rank": 4, "learning_rate": candidate.learning_rate, "use_bias": index % 2 == 0}
    return Proposal(parameters, candidate, {"index": index})


def measurements_of(quality=0.75, peak=2**20, **more):
    """Every field filled."""
    rungs = tuple(
        Rung(
            step=step, planned_steps=20, quality={"accuracy": quality, "f1": quality}, train_loss=0.7, train_s=step / 10
        )
        for step in (10, 20)
    )
    values = {
        "quality": {"accuracy": quality, "f1": quality - 0.01},
        "rungs": rungs,
        "steps": 20,
        "planned_steps": 20,
        "first_losses": tuple(1 / (step + 1) for step in range(20)),
        "train_s": 2.5,
        "train_tokens": 12345,
        "evaluate_s": 0.4,
        "latency_s": 0.01,
        "setup_s": 0.05,
        "trainable_parameters": 128,
        "head_parameters": 18,
        "total_parameters": 1128,
        "inserted_modules": ("bert.encoder.layer.0.q", "bert.encoder.layer.1.q"),
        "adapter_bytes": 2048,
        "train_peak": PeakMemory(live_bytes=peak, source=MemorySource.TRACKED, reserved_bytes=peak + 1),
        "infer_peak": PeakMemory(live_bytes=peak // 2, source=MemorySource.CUDA_ALLOCATOR),
        "train_mean_bytes": peak - 100,
        "estimation_peak": PeakMemory(live_bytes=peak + 200, source=MemorySource.TRACKED),
        "load_peak": PeakMemory(live_bytes=peak // 4, source=MemorySource.CUDA_ALLOCATOR, reserved_bytes=peak // 3),
        "device_taken_bytes": 12345678,
        "foretold_peak": PeakMemory(live_bytes=peak - 300, source=MemorySource.PREDICTED, reserved_bytes=peak + 2),
        "foretold_estimation_peak": PeakMemory(live_bytes=peak + 150, source=MemorySource.PREDICTED),
        "calibrated_peak_bytes": peak - 200,
        "elsewhere_peak": PeakMemory(live_bytes=30 * peak, source=MemorySource.PREDICTED),
        "estimation_s": 0.6,
        "pruning_s": 0.2,
        "copied_bytes": 4096,
        "kept_parameters": 900,
        "layer_scores": ((10, (0.25, -0.5)), (20, (0.5, -1.0))),
        "scored_layers": (0, 1),
        "resumed_at": (4, 12),
        "checkpoint_problem": "checkpoint.safetensors is damaged",
        "device": "cpu",
        "dtype": "float32",
    }
    return Measurements(**{**values, **more})


def complete(quality=0.75, peak=2**20, seconds=3.0, **more):
    """The outcome of a trial that went well."""
    measured = measurements_of(quality, peak, **more)
    return Outcome(status=TrialStatus.COMPLETE, measurements=measured, seconds=seconds)


def trial_of(number, quality=0.75, peak=2**20, **more):
    """A completed trial."""
    proposal = proposal_of(number)
    values = {
        "number": number,
        "candidate": proposal.candidate,
        "parameters": proposal.parameters,
        "seed": 7,
        "status": TrialStatus.COMPLETE,
        "attempt": 1,
        "measurements": measurements_of(quality, peak),
        "sampler_state": {},
        "worker": "w0",
        "created_at": 1000.0,
        "started_at": 1001.0 + number,
        "finished_at": 1004.0 + number,
        "seconds": 3.0,
    }
    return Trial(**{**values, **more})


def results_of(trials=None, objectives=OBJECTIVES, **record):
    """Results with a front of three points (0, 1 and 2), a dominated trial and one of each failure."""
    if trials is None:
        memory = Failure(reason=FailureReason.OUT_OF_MEMORY, text="Out of memory.", violation=0.5)
        raised = Failure(reason=FailureReason.EXCEPTION, text="ValueError: no", detail="Traceback …")
        trials = [
            trial_of(0, 0.6, 1000, test_quality={"accuracy": 0.58, "f1": 0.5}),
            trial_of(1, 0.7, 1100, test_quality={"accuracy": 0.69, "f1": 0.6}),
            trial_of(2, 0.75, 9000, test_quality={"accuracy": 0.71, "f1": 0.7}),
            trial_of(3, 0.55, 9500),
            trial_of(4, status=TrialStatus.INFEASIBLE, measurements=None, failure=memory),
            trial_of(5, status=TrialStatus.CRASHED, measurements=None, failure=raised, parameters={"variant": "dora"}),
        ]
    scored = tuple(score(trial, objectives) for trial in trials)
    made = record_of(**record)
    return RunResults(
        record=made,
        budget=made.spec.budget,
        spent=Spent(trials=len(trials), seconds=20.0),
        objectives=tuple(objectives),
        trials=scored,
        front=Front.of(objectives, scored),
    )


def write_artefact(folder: Path) -> Path:
    """The files that a completed trial leaves, with weights that only look like weights."""
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights of " + folder.name.encode())
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "test_predictions.json").write_text("[0, 1]")
    return folder


def wait_until(true, within_s=20.0):
    """Wait for a condition of another process.

    Raises:
        TimeoutError: where it does not come true in time.
    """
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("it did not come true in time")
        time.sleep(0.02)
