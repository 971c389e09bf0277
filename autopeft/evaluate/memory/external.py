"""The training step of a plain script: transformers, `get_peft_model` and a loop, as a person already has it."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.layout import TaskName
from autopeft.domain.memory import Prediction
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ModelSpec
from autopeft.evaluate.base_model import build_from_config
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.course import earlier
from autopeft.evaluate.memory.emulation import on_meta
from autopeft.evaluate.memory.optimisers import optimiser_of
from autopeft.evaluate.memory.predictor import prediction_of
from autopeft.evaluate.memory.quantised import hold_in_few_bits, in_few_bits
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.stand_ins import TASK_IDS, complete, in_base_dtype, without_weights
from autopeft.evaluate.memory.step import Timeline, traced_step
from autopeft.evaluate.memory.tracing import batch_of, leave_on_host
from autopeft.evaluate.quantisation import kept_whole

WHERE = "--peft-config"
FULL = "none"
"""What is said in place of a file where every weight trains."""
_TASKS = {"CAUSAL_LM": TaskName.CAUSAL_LM, "SEQ_CLS": TaskName.SEQUENCE_CLASSIFICATION}
_BOOKKEEPING = frozenset(("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"))
"""Keys that say nothing of the training."""


@dataclass(frozen=True)
class PeftFile:
    """A configuration of peft as somebody saved it."""

    name: str
    """Its `peft_type`, or `none`."""
    config: Any
    """The configuration; None where every weight trains."""
    task: TaskName | None
    """What it says that the model is trained for."""
    ignored: tuple[str, ...] = ()
    """Keys with a value that the installed peft does not know."""

    @property
    def title(self) -> str:
        """In one line: the method, its knob where it has one, and its modules."""
        if self.config is None:
            return "full fine-tuning"
        rank, modules = getattr(self.config, "r", None), getattr(self.config, "target_modules", None)
        parts = [f"{self.name} r{rank}" if isinstance(rank, int) else self.name]
        if modules:
            named = isinstance(modules, list | tuple | set)
            parts.append(",".join(sorted(map(str, modules))) if named else str(modules))
        tokens = getattr(self.config, "num_virtual_tokens", None)
        return " · ".join([*parts, *([f"{tokens} tokens"] if tokens else [])])

    def copied(self) -> PeftFile:
        """The same with a configuration of its own, because peft writes into the one that it puts in."""
        return replace(self, config=copy.deepcopy(self.config))


def read_peft(path: str, task: TaskName | None = None) -> PeftFile:
    """Read an `adapter_config.json`, or the folder that holds it; `none` is full fine-tuning.

    A `task` takes the place of another one that the file names.

    Raises:
        UserError: where it cannot be read or the installed peft cannot take it.
    """
    if path.lower() == FULL:
        return PeftFile(FULL, None, None)
    said = _json(Path(path).expanduser())
    kind = str(said.get("peft_type") or "")
    if not kind:
        raise _refused(f"{path} names no peft_type", "Give an adapter_config.json that peft wrote.")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(unknown(f"{WHERE}: peft_type", kind, (str(one.value) for one in PEFT_TYPE_TO_CONFIG_MAPPING)))
    named = said.get("task_type")
    if named is not None and task is not None:
        named = said["task_type"] = next(name for name, known in _TASKS.items() if known is task)
    if named is not None and named not in _TASKS:
        raise UserError(
            Problem(
                f"{WHERE}: task_type",
                f"'{named}' is none of them",
                ", ".join(_TASKS),
                "Say --task, or correct the file.",
            )
        )
    kind_of = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = inspect.signature(kind_of.__init__).parameters
    _check_numbers(kind_of, said)
    left = sorted(key for key, value in said.items() if key not in known and key not in _BOOKKEEPING and _says(value))
    try:
        config = kind_of(**{key: value for key, value in said.items() if key in known and key not in _BOOKKEEPING})
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise _refused(f"the installed peft refuses {path}: {_first_line(error)}", "Correct the file.") from error
    return PeftFile(kind, config, _TASKS.get(str(named)), tuple(left))


def _check_numbers(kind_of: Any, said: dict[str, Any]) -> None:
    """peft takes any value at first and fails somewhere inside of torch."""
    numbers = {one.name: one.type for one in fields(kind_of) if one.type in ("int", "float", int, float)}
    wrong = {name: said[name] for name in numbers if isinstance(said.get(name), str | bool | list | dict)}
    if wrong:
        raise UserError(
            *(
                Problem(f"{WHERE}: {name}", f"{value!r} is no number", "", "Correct the file.")
                for name, value in wrong.items()
            )
        )


class Script:
    """A plain script that trains a model with a configuration of peft; answers for one setup after another."""

    def __init__(
        self,
        spec: ModelSpec,
        task: TaskInfo,
        peft: PeftFile,
        *,
        attention: str | None = None,
        adapters_in_float32: bool = True,
    ) -> None:
        """`attention` is the implementation by transformers' name; the others are as `external_timeline` has them.

        Raises:
            UserError: where the model cannot be built.
        """
        self._spec, self._task, self._attention = spec, task, attention
        self._peft, self._in_float32 = peft, adapters_in_float32
        self._timelines: dict[Setup, tuple[Timeline, Timeline]] = {}
        model = self._build()
        self.layout = inspect_layout(model)
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")

    def predict(self, setup: Setup, workspace: int) -> Prediction:
        """The step of a setup; `workspace` bytes are held in the allocator by libraries.

        Raises:
            UserError: where the configuration does not fit the model.
        """
        if setup not in self._timelines:
            before, longest = (
                external_timeline(self._build(), self._peft.copied(), one, adapters_in_float32=self._in_float32)
                for one in (earlier(setup), setup)
            )
            self._timelines[setup] = (before, longest)
        before, longest = self._timelines[setup]
        return prediction_of(longest, workspace if setup.target == "cuda" else None, before)

    def _build(self) -> Any:
        model = build_from_config(self._spec, self._task, self._attention)
        if self._spec.load_in is not None:
            # As `prepare_model_for_kbit_training` leaves it: what is not in few bits is in float32, and nothing trains.
            hold_in_few_bits(model, self._spec.load_in, kept_whole(model, ()))
            for part in model.parameters():
                if part.is_floating_point():
                    part.data = part.data.float()
            model.requires_grad_(False)
        return model


def external_timeline(model: Any, peft: PeftFile, setup: Setup, *, adapters_in_float32: bool = True) -> Timeline:
    """One step of a script that trains a model with a configuration of peft, in a loop of its own.

    The model stays in its dtype, without autocast; its head too. Nothing is taken out of training mode.

    Args:
        model: That `AutoModelFor…` returned, on `meta`; it is changed for good.
        peft: What is put in.
        setup: Of the step.
        adapters_in_float32: `autocast_adapter_dtype` of `get_peft_model`, which is true by default.

    Raises:
        UserError: where the configuration does not fit the model.
    """
    layout = inspect_layout(model)
    _padding(model)
    # With checkpointing transformers caches nothing, and would say so on the terminal.
    model.config.use_cache = setup.caches and not setup.checkpointing and getattr(model.config, "use_cache", False)
    own = [*model.parameters(), *model.buffers()]  # kept, so that no other tensor gets the identity of one
    owned = {id(tensor) for tensor in own}
    if setup.checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the method will have another name one day
            model.gradient_checkpointing_enable()
    whole: Any = model
    if peft.config is not None:
        try:
            with warnings.catch_warnings(), on_meta(setup.padded), without_weights(peft.name, peft.config):
                warnings.simplefilter("ignore")
                whole = get_peft_model(model, peft.config, autocast_adapter_dtype=adapters_in_float32)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RuntimeError,
            NotImplementedError,
            ImportError,
        ) as error:
            raise _refused(
                f"{peft.name} cannot be put into this model: {_first_line(error)}",
                "Correct target_modules and the like; a configuration is for one architecture.",
            ) from error
    if setup.target == "cuda":
        leave_on_host(whole)
    if not adapters_in_float32:
        in_base_dtype(whole)
    complete(whole)
    whole.train()
    if peft.config is None and in_few_bits(model):
        raise _refused("weights in few bits cannot train", "Leave out --load-in, or give a configuration of peft.")
    trained = [part for part in whole.parameters() if part.requires_grad]
    if not trained:
        raise _refused(f"{peft.name} leaves nothing to train", "Set inference_mode to false in it.")
    blocks = list(model.get_submodule(layout.layers[0].path.rpartition(".")[0]).children())
    with on_meta(setup.padded):
        optimizer = optimiser_of(trained, setup)
    batch = batch_of(model, layout, setup)
    if peft.name in TASK_IDS:
        batch["task_ids"] = torch.empty(setup.rows, dtype=torch.int64, device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return traced_step(whole, blocks, lambda tensor: id(tensor) in owned, optimizer, batch, setup)


def _padding(model: Any) -> None:
    """What a script must do before it can pad."""
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0


def _json(path: Path) -> dict[str, Any]:
    file = path / "adapter_config.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _refused(f"there is no file {file}", f"Check the path, or say {WHERE} {FULL}.") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _refused(f"{file} is not readable JSON: {_first_line(error)}", "Restore the file.") from None
    if not isinstance(found, dict):
        raise _refused(f"{file} is not a JSON object", "Give an adapter_config.json that peft wrote.")
    return found


def _says(value: Any) -> bool:
    return value is not None and value != {} and value != [] and value is not False


def _refused(found: str, next_step: str) -> UserError:
    return UserError(Problem(WHERE, found, "", next_step))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
