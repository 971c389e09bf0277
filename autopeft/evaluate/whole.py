"""A trained point as an ordinary Hugging Face folder: its adapter merged; a pruned one where its widths allow it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout, Role
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.base_model import load_base_model
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.loading import load_parts
from autopeft.evaluate.merging import merged, unmergeable
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.pruning.live import sides
from autopeft.evaluate.pruning.shape import ffn_units, head_shape

ROWS, TOKENS = 4, 12
"""Rows of random tokens on which the written model is compared with the adapter."""
_TOLERANCE = 1e-3
"""Largest difference of logits in float32, relative to the largest of them or 1; seen: 1e-6."""


def write_whole(spec: SearchSpec, task: TaskInfo, candidate: Candidate, adapter: Path, folder: Path) -> float:
    """Write the model of a saved adapter, and its tokenizer, so that `from_pretrained` loads it without this project.

    Merging is done in float32; on a half-precision base the result is rounded to the base's dtype once, head included.
    The folder is loaded back and compared with the adapter on rows of random tokens.

    Args:
        spec: Of the run: names the base model.
        task: Of the run.
        candidate: That the adapter is of.
        adapter: Folder of the adapter.
        folder: Exists and is empty.

    Returns:
        The largest difference of a logit, computed in float32: what merging and rounding changed.

    Raises:
        UserError: where the point is no ordinary model, or merging changes what it says.
    """
    _check(spec, candidate)
    base = load_base_model(spec.model, task, spec.seed)
    dtype = next(base.model.parameters()).dtype
    layout = inspect_layout(base.model, base.new_parameters)
    model, companions = load_parts(base.model.float(), adapter)
    rows = _rows(base.model, base.pad_id)
    expected = _logits(model, rows)
    whole = as_ordinary(merged(model, companions).eval(), layout, pruned=candidate.pruning is not None)
    _compare(_logits(whole, rows), expected)
    kind = type(whole)
    whole.to(dtype).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    del whole, model, companions, base
    found = _logits(kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval(), rows)
    if dtype == torch.float32:
        _compare(found, expected)
    return float((found - expected).abs().max())


def as_ordinary(model: Any, layout: ModelLayout, *, pruned: bool) -> Any:
    """The plain model with a configuration that says its widths, so that it can be built from it.

    Args:
        model: Without adapters; of a pruned point, with what was cut.
        layout: Of the base model before it was pruned.
        pruned: Whether it was.

    Raises:
        UserError: where layers differ in their widths, or the configuration has no way to say fewer heads or units.
    """
    if not pruned:
        return model
    widths = _widths(model, layout)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for config in _configs(model.config, layout, widths):
        try:
            with torch.device("meta"):
                whole = type(model)(config)
        except (ValueError, RuntimeError, AssertionError):
            continue
        if {name: tensor.shape for name, tensor in whole.state_dict().items()} == shapes:
            model.config = config
            return model
    raise _refused(
        f"the configuration of '{layout.model_type}' cannot say {widths.heads} heads of {layout.head_dim} "
        f"with {widths.units} feed-forward units in layers {layout.hidden_size} wide",
        "points whose ratio of heads is 0",
    )


def _check(spec: SearchSpec, candidate: Candidate) -> None:
    """What can be refused before anything is loaded, all of it at once."""
    problems: list[Problem] = []
    if stuck := unmergeable([one.method for one in candidate.insertions]):
        mergeable = ", ".join(name for name in METHODS if not unmergeable([name]))
        what = f"{', '.join(stuck)} cannot be merged into the weights of the base"
        problems += _refused(what, mergeable).problems
    if spec.model.load_in is not None:
        problems += _refused(
            f"its base is in {spec.model.load_in}, into which an update would be rounded away", "bases in 16 or 32 bits"
        ).problems
    if spec.model.trust_remote_code:
        problems += _refused("its base comes with Python code of its own", "models that transformers knows").problems
    if problems:
        raise UserError(*problems)


def _rows(model: Any, pad_id: int) -> dict[str, torch.Tensor]:
    """Rows of different lengths."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.get_input_embeddings().num_embeddings, (ROWS, TOKENS), generator=draw)
    # A decoder's head looks for the last token that is no padding.
    ids[ids == pad_id] = (pad_id + 1) % model.get_input_embeddings().num_embeddings
    real = torch.ones_like(ids)
    for row in range(1, ROWS):
        real[row, TOKENS - 2 * row :] = 0
    return {"input_ids": ids.masked_fill(real == 0, pad_id), "attention_mask": real}


def _logits(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**rows).logits
    # What a language model says of padding is nobody's concern.
    return found.float() if found.ndim == 2 else found.float()[rows["attention_mask"].bool()]


def _compare(found: torch.Tensor, expected: torch.Tensor) -> None:
    largest = float((found - expected).abs().max())
    if not largest <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise _refused(f"merged, its logits differ by {largest:.3g} from those of the adapter", "")


class _Widths(NamedTuple):
    """Of one layer."""

    heads: int
    groups: int
    """Of heads that share keys and values."""
    units: int


_NAMES = ("heads", "groups of heads", "feed-forward units")


def _widths(model: Any, layout: ModelLayout) -> _Widths:
    """Heads, their groups and FFN units, the same in every layer."""
    found = []
    for layer in layout.layers:
        shape, output, out = head_shape(layer, layout), layer.module(Role.ATTENTION_OUTPUT), layer.module(Role.FFN_OUT)
        key = layer.module(Role.KEY) or layer.module(Role.QKV)
        if shape is None or output is None or out is None or key is None:
            raise _refused(f"layer {layer.index} has no heads or no units", "")
        context, inner = (sides(model.get_submodule(one.path))[0] for one in (output, out))
        keys = sides(model.get_submodule(key.path))[1]
        if key.role is Role.QKV:
            keys = (keys - context) // 2
        found.append(_Widths(context // shape.head_dim, keys // shape.head_dim, inner))
    if len(set(found)) > 1:
        uneven = [
            f"{name} ({min(counts)} to {max(counts)})"
            for name, counts in zip(_NAMES, zip(*found, strict=True), strict=True)
            if len(set(counts)) > 1
        ]
        raise _refused(f"its layers have different numbers of {' and '.join(uneven)}", "points with `ffn_scope: layer`")
    return found[0]


def _configs(config: Any, layout: ModelLayout, widths: _Widths) -> Iterator[Any]:
    """Copies of the configuration with fewer heads and units, by each of the fields that may mean them."""
    width = ffn_units(layout.layers[0])
    fields = config.to_dict()
    # None stands for a width that is computed, which a number can replace (GPT-2's `n_inner`).
    inner = [name for name, value in fields.items() if type(value) is int and value == width]
    inner += [name for name, value in fields.items() if value is None and "inner" in name]
    for name in inner if widths.units != width else [None]:
        changed = copy.deepcopy(config)
        if name is not None:
            setattr(changed, name, widths.units)
        if widths.heads != layout.heads:
            changed.num_attention_heads = widths.heads
            if hasattr(config, "num_key_value_heads"):
                changed.num_key_value_heads = widths.groups
            changed.head_dim = layout.head_dim
        yield changed


def _refused(found: str, allowed: str) -> UserError:
    return UserError(
        Problem(
            "--whole",
            f"this point is no ordinary model: {found}",
            allowed,
            "Export it without --whole, and load the adapter with `autopeft.load_adapter`.",
        )
    )
