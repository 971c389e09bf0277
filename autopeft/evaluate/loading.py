"""Putting a saved adapter onto a base model: what `autopeft.load_adapter` is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.config import PeftConfig
from safetensors.torch import load_file

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import UserError
from autopeft.evaluate.composition import compose, load_state
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import Companion
from autopeft.evaluate.pruning.record import FOLDED, from_record
from autopeft.evaluate.pruning.surgery import prune
from autopeft.evaluate.untouched import Untouched

WEIGHTS = "adapter_model.safetensors"
RECORD = "autopeft_adapter.json"
"""How to make the places for the weights; absent where the folder is one of peft's."""


class AdapterError(ValueError):
    """The folder holds no adapter, or one that does not fit this model."""


def load_adapter(base_model: Any, path: str | Path, untouched: Untouched | None = None) -> Any:
    """The base model with a trained adapter, ready to predict.

    A folder with `adapter_config.json` is one of peft's and loaded by peft. One with `autopeft_adapter.json` holds a
    mix, or a method that peft has not: its insertions are put into `base_model` itself, in place; where it was trained
    on a pruned base, `base_model` is pruned in the same way.

    Args:
        base_model: What `AutoModelForSequenceClassification` or `AutoModelForCausalLM` returned, with as many labels
            as the adapter was trained for.
        path: Folder of the adapter.
        untouched: Of the model, where it is to be put back later; a search needs it, nobody else.

    Raises:
        AdapterError: where there is no adapter, or it does not fit the model.
    """
    return load_parts(base_model, path, untouched)[0]


def load_parts(
    base_model: Any, path: str | Path, untouched: Untouched | None = None
) -> tuple[Any, tuple[Companion, ...]]:
    """As `load_adapter`, and the companions of the insertions, which know how to fold them into the base."""
    folder = Path(path)
    if not (folder / RECORD).is_file():
        if not (folder / "adapter_config.json").is_file():
            raise AdapterError(f"{folder} holds no adapter: neither {RECORD} nor adapter_config.json is there")
        if untouched is not None:
            _keep_targets(untouched, folder / "adapter_config.json")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(base_model, str(folder)), ()
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    layout = inspect_layout(base_model).model_copy(update={"head_paths": tuple(record["head_paths"])})
    insertions = [Insertion.model_validate(one) for one in record["insertions"]]
    configs = [one and PeftConfig.from_peft_type(**one) for one in record["peft_configs"]]
    untouched = untouched or Untouched(base_model)
    try:
        state = load_file(folder / WEIGHTS)
        composed = compose(untouched, insertions, layout, configs=configs, forms=record.get("forms"))
        if record.get("pruning") is not None:
            prune(untouched, composed, insertions, layout, from_record(record["pruning"], state))
        load_state(base_model, {name: values for name, values in state.items() if not name.startswith(FOLDED)})
    except (UserError, ValueError, LookupError, AttributeError) as error:
        untouched.restore()  # half of an adapter is worse than none
        raise AdapterError(f"the adapter in {folder} does not fit this model: {error}") from error
    return base_model.requires_grad_(False).eval(), tuple(one for one in composed.companions if one is not None)


def _keep_targets(untouched: Untouched, config: Path) -> None:
    """Copy the weights that an adapter acts on, since some methods (KaSA, OSF) overwrite them when they are loaded."""
    targets = json.loads(config.read_text(encoding="utf-8")).get("target_modules")
    # peft writes many paths as the endings that they have in common.
    wanted = tuple(f".{target}" for target in targets) if isinstance(targets, list) else ()
    for path, module in untouched.model.named_modules():
        if f".{path}".endswith(wanted):
            untouched.keep(module.parameters())
