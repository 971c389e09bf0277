"""A model on `meta` that is as deep as a question needs, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from autopeft.domain.layout import ModelLayout


@contextmanager
def cut_to(model: Any, layout: ModelLayout, layers: Sequence[int]) -> Iterator[ModelLayout]:
    """The model with these of its layers alone; gives its layout."""
    table = vars(model.get_submodule(layout.layers[0].path.rpartition(".")[0]))["_modules"]
    config = model.config.get_text_config()
    depth = config.num_hidden_layers
    whole = dict(table)
    parent = layout.layers[0].path.rpartition(".")[0]
    try:
        table.clear()
        table.update({str(place): whole[str(index)] for place, index in enumerate(layers)})
        config.num_hidden_layers = len(layers)
        _number(table.values())
        yield layout.model_copy(
            update={
                "layers": tuple(_moved(layout, index, f"{parent}.{place}", place) for place, index in enumerate(layers))
            }
        )
    finally:
        table.clear()
        table.update(whole)
        config.num_hidden_layers = depth
        _number(table.values())


def _number(blocks: Iterable[nn.Module]) -> None:
    """Tell each block its place, by which its attention finds its part of a cache."""
    for place, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                vars(module)["layer_idx"] = place


def _moved(layout: ModelLayout, index: int, path: str, place: int) -> Any:
    layer = layout.layers[index]

    def at(old: str) -> str:
        return path + old.removeprefix(layer.path) if old else old

    return layer.model_copy(
        update={
            "index": place,
            "path": path,
            "attention": at(layer.attention),
            "modules": tuple(one.model_copy(update={"path": at(one.path)}) for one in layer.modules),
            "norms": tuple(one.model_copy(update={"path": at(one.path)}) for one in layer.norms),
        }
    )
