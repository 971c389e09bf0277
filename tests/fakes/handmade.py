"""The search space `lora` on a model that is written down, not loaded."""

from __future__ import annotations

from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.evaluate.methods import METHODS
from autopeft.spaces.binding import BoundSpace, bind
from autopeft.spaces.library import load_space

_WIDTHS = {
    Role.QUERY: (384, 384),
    Role.KEY: (384, 384),
    Role.VALUE: (384, 384),
    Role.ATTENTION_OUTPUT: (384, 384),
    Role.FFN_IN: (384, 1536),
    Role.FFN_OUT: (1536, 384),
}


def handmade_layout() -> ModelLayout:
    """Six layers of a BERT 384 wide."""
    layers = tuple(
        LayerLayout(
            index=index,
            path=f"layers.{index}",
            modules=tuple(
                ModuleLayout(role=role, path=f"layers.{index}.{role.value}", in_features=width, out_features=out)
                for role, (width, out) in _WIDTHS.items()
            ),
        )
        for index in range(6)
    )
    return ModelLayout(
        model_type="handmade",
        hidden_size=384,
        heads=12,
        kv_heads=12,
        layers=layers,
        head_paths=("classifier",),
        parameters=22_000_000,
        weights_bytes=88_000_000,
    )


def handmade_space() -> BoundSpace:
    """`lora` bound to it."""
    return bind(load_space("lora"), handmade_layout(), METHODS)
