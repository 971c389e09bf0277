"""What a base model offers to PEFT methods, found by looking at its modules."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, NormLayout, Role, TaskName

_WORDS = {
    Role.QUERY: re.compile(r"q|wq|to_q|q_(proj|lin|attn)|query(_proj|_layer)?", re.IGNORECASE),
    Role.KEY: re.compile(r"k|wk|to_k|k_(proj|lin|attn)|key(_proj|_layer)?", re.IGNORECASE),
    Role.VALUE: re.compile(r"v|wv|to_v|v_(proj|lin|attn)|value(_proj|_layer)?", re.IGNORECASE),
    Role.QKV: re.compile(r"c_attn|in_proj|w?_?qkv(_proj)?|query_key_value|attn_qkv", re.IGNORECASE),
}
"""Last parts of names that say which matrix of the attention a module is."""
_CROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
_GATE = re.compile(r"gate|w1$|wi_0$", re.IGNORECASE)


def inspect_layout(model: Any, new_parameters: Iterable[str] = ()) -> ModelLayout:
    """The layers, linear modules and head of a model that `AutoModelFor…` returned; works on the meta device.

    `new_parameters` names the parameters that the checkpoint lacks: their modules are trained with the head, because
    nobody who loads the adapter elsewhere could have the same random values.

    Raises:
        UserError: where no repeated block is found, or the checkpoint lacks weights inside the blocks.
    """
    path, blocks = _blocks(model)
    layers = tuple(_layer(index, f"{path}.{name}", block) for index, (name, block) in enumerate(blocks))
    if not any(layer.modules for layer in layers):
        raise _unusable(model, "its blocks hold no linear module of a known role")
    config = model.config.get_text_config()
    hidden = getattr(config, "hidden_size", None) or _commonest_width(layers)
    heads_count = getattr(config, "num_attention_heads", None) or 1
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    task = TaskName.SEQUENCE_CLASSIFICATION if model.get_output_embeddings() is None else TaskName.CAUSAL_LM
    heads = _head_paths(model, path, tuple(new_parameters), task)
    return ModelLayout(
        model_type=str(model.config.model_type),
        hidden_size=hidden,
        heads=heads_count,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads_count,
        layers=layers,
        head_dim=getattr(config, "head_dim", None) or hidden // heads_count,
        head_paths=heads,
        head_parameters=sum(part.numel() for head in heads for part in model.get_submodule(head).parameters()),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        max_positions=_max_positions(model, config),
        embedding_size=int(model.get_input_embeddings().weight.shape[1]),
        takes_cache=_takes_cache(model),
        task=task,
        causal=any(getattr(module, "is_causal", False) is True for module in model.modules()),
        quantised=bool(getattr(model, "is_quantized", False)),
    )


def head_paths(model: Any, new_parameters: Iterable[str] = ()) -> tuple[str, ...]:
    """`ModelLayout.head_paths` alone.

    Raises:
        UserError: as `inspect_layout`.
    """
    task = TaskName.SEQUENCE_CLASSIFICATION if model.get_output_embeddings() is None else TaskName.CAUSAL_LM
    return _head_paths(model, _blocks(model)[0], tuple(new_parameters), task)


def linear_modules(block: nn.Module) -> list[tuple[str, nn.Module, int, int]]:
    """Name, module, input and output width of every linear module below `block`, in order of definition."""
    found: list[tuple[str, nn.Module, int, int]] = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            found.append((name, module, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            found.append((name, module, rows, columns))
    return found


def _blocks(model: Any) -> tuple[str, list[tuple[str, nn.Module]]]:
    """The parent path and the numbered children that hold the most linear weights: the model's layers."""
    best: tuple[tuple[int, int], str, list[tuple[str, nn.Module]]] | None = None
    for path, module in model.named_modules():
        children = list(module.named_children())
        if not children or [name for name, _ in children] != [str(index) for index in range(len(children))]:
            continue
        if len({type(child) for _, child in children}) > max(1, len(children) // 2):
            continue
        weights = sum(rows * columns for _, child in children for _, _, rows, columns in linear_modules(child))
        rank = (weights, len(children))
        if weights and (best is None or rank > best[0]):
            best = (rank, path, children)
    if best is None:
        raise _unusable(model, "it has no list of repeated blocks")
    return best[1], best[2]


def _layer(index: int, path: str, block: nn.Module) -> LayerLayout:
    modules = _modules(path, block)
    norms = tuple(
        NormLayout(path=f"{path}.{name}", parameters=sum(part.numel() for part in module.parameters(recurse=False)))
        for name, module in block.named_modules()
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
    )
    parts = {module.role: module.path.removeprefix(f"{path}.") for module in modules}
    projections = [parts[role] for role in (Role.QUERY, Role.KEY, Role.VALUE, Role.QKV) if role in parts]
    return LayerLayout(
        index=index,
        path=path,
        modules=modules,
        norms=norms,
        attention=f"{path}.{_container(projections)}".rstrip(".") if projections else "",
        parameters=sum(part.numel() for part in block.parameters()),
        biases=sum(part.numel() for name, part in block.named_parameters() if name.rpartition(".")[2] == "bias"),
    )


def _modules(path: str, block: nn.Module) -> tuple[ModuleLayout, ...]:
    biased = {name for name, module, _, _ in linear_modules(block) if getattr(module, "bias", None) is not None}
    transposed = {name for name, module, _, _ in linear_modules(block) if isinstance(module, Conv1D)}
    linears = [entry for entry in linear_modules(block) if not _CROSS.search(entry[0])]
    roles: dict[Role, tuple[str, int, int]] = {}
    for name, _, rows, columns in linears:
        role = _projection(name, rows, columns)
        if role is not None and role not in roles:
            roles[role] = (name, rows, columns)
    projections = [name for name, _, _ in roles.values()]
    rest = [(name, rows, columns) for name, _, rows, columns in linears if name not in projections]
    if roles:
        output = _attention_output(roles, rest)
        if output is not None:
            roles[Role.ATTENTION_OUTPUT] = output
        width = next(iter(roles.values()))[1]
        container = _container([name for name, _, _ in roles.values()])
        rest = [entry for entry in rest if entry != output and not (container and entry[0].startswith(container))]
    else:
        width = (
            Counter(side for _, rows, columns in rest for side in (rows, columns)).most_common(1)[0][0] if rest else 0
        )
    roles.update(_feed_forward(rest, width))
    return tuple(
        ModuleLayout(
            role=role,
            path=f"{path}.{name}",
            in_features=rows,
            out_features=columns,
            bias=name in biased,
            transposed=name in transposed,
        )
        for role in Role
        if role in roles
        for name, rows, columns in [roles[role]]
    )


def _projection(name: str, rows: int, columns: int) -> Role | None:
    """Query, key, value or all three, by the last part of the name and the shape."""
    last = name.rsplit(".", 1)[-1]
    for role, word in _WORDS.items():
        if word.fullmatch(last):
            # A matrix for all three is wider than it is high; grouped key and value heads may be narrow.
            return role if role is not Role.QKV or columns > rows else None
    return None


def _attention_output(
    roles: dict[Role, tuple[str, int, int]], rest: Sequence[tuple[str, int, int]]
) -> tuple[str, int, int] | None:
    """The matrix behind the heads: back to the block's width, nearest in name to the projections."""
    projection = roles.get(Role.QUERY) or roles.get(Role.QKV) or next(iter(roles.values()))
    name, width, columns = projection
    heads_width = columns if Role.QUERY in roles else width

    def shared(other: str) -> int:
        pairs = zip(name.split("."), other.split("."), strict=False)
        return next((depth for depth, (one, two) in enumerate(pairs) if one != two), 0)

    fits = [entry for entry in rest if entry[2] == width and (entry[1] == heads_width or Role.QKV in roles)]
    if len(name.split(".")) > 1:
        fits = [entry for entry in fits if shared(entry[0]) > 0]
    fits = [entry for entry in fits if not re.search(r"(^|[._])(pos|rel)", entry[0])]
    return max(fits, key=lambda entry: shared(entry[0]), default=None)


def _container(names: list[str]) -> str:
    """The submodule, with a closing dot, that holds every one of these names; empty where they lie in the block."""
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common) + "." if common else ""


def _feed_forward(rest: Sequence[tuple[str, int, int]], width: int) -> dict[Role, tuple[str, int, int]]:
    """Input, gate and output of the feed-forward part, by shape, then name, then order."""
    ways_in = [entry for entry in rest if entry[1] == width and entry[2] != width]
    ways_out = [entry for entry in rest if entry[2] == width and entry[1] != width]
    if not ways_in and not ways_out:
        # As wide inside as outside: only the order tells them apart.
        square = [entry for entry in rest if entry[1] == entry[2] == width]
        ways_in, ways_out = square[:-1], square[-1:]
    found: dict[Role, tuple[str, int, int]] = {}
    if ways_out:
        found[Role.FFN_OUT] = ways_out[0]
    gates = [entry for entry in ways_in if _GATE.search(entry[0].rsplit(".", 1)[-1])]
    if len(ways_in) > 1 and gates:
        found[Role.FFN_GATE] = gates[0]
        ways_in = [entry for entry in ways_in if entry != gates[0]]
    if ways_in:
        found[Role.FFN_IN] = ways_in[0]
    return found


def _head_paths(model: Any, blocks_path: str, new_parameters: tuple[str, ...], task: TaskName) -> tuple[str, ...]:
    """Modules with parameters outside the pretrained body, then those inside it that the checkpoint lacks.

    The head of a language model is pretrained like its body, so that it is no new one.
    """
    body = model.base_model_prefix
    if not hasattr(model, body):
        body = blocks_path.split(".")[0]
    heads = [name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())]
    if task is TaskName.CAUSAL_LM:
        heads = []
    lost = []
    for name in new_parameters:
        path = name.rpartition(".")[0]
        if any(path == head or path.startswith(f"{head}.") for head in heads):
            continue
        if path.startswith(f"{blocks_path}."):
            raise _unusable(model, f"the weight file lacks '{name}'", "Give the weights of this very model.")
        if path and path not in lost:
            lost.append(path)
    return (*heads, *lost)


def _takes_cache(model: Any) -> bool:
    """Whether the model, or the body that its head stands on, has an argument `past_key_values`."""
    body = getattr(model, model.base_model_prefix, model)
    return any("past_key_values" in inspect.signature(part.forward).parameters for part in (model, body))


def _max_positions(model: Any, config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if limit == getattr(config, "vocab_size", None):
        return limit
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            # RoBERTa counts positions from behind the padding index.
            return limit - module.padding_idx - 1
    return limit


def _commonest_width(layers: Sequence[LayerLayout]) -> int:
    widths = Counter(module.in_features for layer in layers for module in layer.modules)
    return widths.most_common(1)[0][0]


def _unusable(model: Any, found: str, next_step: str = "") -> UserError:
    return UserError(
        Problem(
            "model",
            f"layers of the model type '{model.config.model_type}' cannot be used: {found}",
            "a model with a list of equal blocks that hold linear modules",
            next_step or "Choose another model.",
        )
    )
