"""An `adapter_config.json` of LoRA as a candidate: what a script that a person already has would put in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout, ModuleLayout

FILE = "adapter_config.json"
_STARTS = {True: "lora", "true": "lora", None: "lora", "gaussian": "lora", "pissa": "pissa", "olora": "olora"}
"""Methods by `init_lora_weights`; the start by small random numbers is one of them."""
_LEFT_OUT = ("rank_pattern", "alpha_pattern", "target_parameters", "layer_replication", "trainable_token_indices")
"""Keys that make another training of it than a candidate can say."""


def is_peft_config(path: Path) -> bool:
    """Whether this is such a file, or the folder of an adapter that is no export of ours."""
    return path.suffix == ".json" or (path.is_dir() and (path / FILE).is_file())


def read_lora(path: Path, layout: ModelLayout) -> Insertion:
    """The insertion that a saved configuration of LoRA stands for on this model; its learning rate is not in it.

    Raises:
        UserError: where it cannot be read, is of another method, or says what no candidate can.
    """
    file = path / FILE if path.is_dir() else path
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise UserError(Problem(str(file), f"the configuration cannot be read ({reason})", "", "Check it.")) from None
    kind = str(said.get("peft_type")) if isinstance(said, dict) else "nothing"
    if kind != "LORA":
        step = "Write a candidate.yaml for other methods; see `autopeft methods`."
        raise UserError(Problem(f"{file}: peft_type", f"it is {kind}", "LORA", step))
    problems = [
        Problem(f"{file}: {key}", "a candidate cannot say it", "nothing", "Leave it out, or leave the file out.")
        for key in _LEFT_OUT
        if said.get(key)
    ]
    if said.get("bias", "none") != "none":
        problems.append(Problem(f"{file}: bias", f"it is {said['bias']}", "none"))
    start, rank = said.get("init_lora_weights"), said.get("r")
    if isinstance(start, list | dict) or start not in _STARTS:
        problems.append(Problem(f"{file}: init_lora_weights", f"it is {start}", "true, gaussian, pissa, olora"))
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        problems.append(Problem(f"{file}: r", f"it is {rank}", "a whole number above 0"))
    if problems:
        raise UserError(*problems)
    layers, roles = _places(file, said, layout)
    forms = [name for key, name in (("use_rslora", "rslora"), ("use_dora", "dora")) if said.get(key)]
    started = _STARTS[start]
    if len(forms) + (started != "lora") > 1:
        raise UserError(Problem(str(file), f"it is {' and '.join(forms)} at once, from {started}", "one of them"))
    assert isinstance(rank, int)
    settings = {
        "rank": rank,
        "alpha_ratio": float(said.get("lora_alpha") or 8) / rank,
        "dropout": float(said.get("lora_dropout") or 0.0),
    }
    return Insertion(method=forms[0] if forms else started, layers=layers, modules=roles, settings=settings)


def _places(file: Path, said: dict[str, Any], layout: ModelLayout) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Layers and roles of the modules that `target_modules` names."""
    wanted, only = said.get("target_modules"), said.get("layers_to_transform")
    only = [only] if isinstance(only, int) else only
    found: dict[int, tuple[str, ...]] = {}
    for layer in layout.layers:
        if only is None or layer.index in only:
            roles = tuple(sorted(module.role.value for module in layer.modules if _named(module, wanted)))
            if roles:
                found[layer.index] = roles
    where = f"{file}: target_modules"
    if not found:
        names = dict.fromkeys(module.path.rpartition(".")[2] for module in layout.layers[0].modules)
        raise UserError(Problem(where, f"no layer of the model has {wanted}", ", ".join(names)))
    if len(set(found.values())) > 1:
        raise UserError(Problem(where, "layers differ in their modules", "the same modules in every layer"))
    return tuple(sorted(found)), next(iter(found.values()))


def _named(module: ModuleLayout, wanted: Any) -> bool:
    if wanted == "all-linear":
        return True
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module.path) is not None
    return any(module.path == name or module.path.endswith(f".{name}") for name in wanted or ())
