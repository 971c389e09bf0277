"""The PEFT modules of a live model as pruning sees them: a matrix down to the ranks, a matrix up from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.methods.bottleneck_modules import Bottleneck
from autopeft.evaluate.pruning.shape import Site

_HOOKS = tuple(key for key, value in vars(nn.Module()).items() if "hooks" in key and isinstance(value, dict))


class LiveSite(ABC):
    """One PEFT module; shapes are `down [ranks, in]`, `up [out, ranks]`."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    @abstractmethod
    def down(self) -> nn.Linear: ...

    @property
    @abstractmethod
    def up(self) -> nn.Linear: ...

    @property
    @abstractmethod
    def scale(self) -> float:
        """What the product is multiplied by; that of the unpruned module, whatever its ranks are now."""

    @abstractmethod
    def remove(self) -> None:
        """Take the module out of the model, which is there as if it had never been put in."""

    def keep_ranks(self, kept: Sequence[int]) -> None:
        """Leave these ranks; the scale stays."""
        keep_outputs(self.down, kept)
        keep_inputs(self.up, kept)


class LoraSite(LiveSite):
    """A LoRA of peft on one linear module."""

    def __init__(self, site: Site, model: Any) -> None:
        super().__init__(site)
        self._model = model
        self._name = f"i{site.insertion}"

    @property
    def layer(self) -> Any:
        """peft's module in the place of the base's."""
        return self._model.get_submodule(self.site.path)

    @property
    def down(self) -> nn.Linear:
        return self.layer.lora_A[self._name]

    @property
    def up(self) -> nn.Linear:
        return self.layer.lora_B[self._name]

    @property
    def scale(self) -> float:
        return float(self.layer.scaling[self._name])

    def keep_ranks(self, kept: Sequence[int]) -> None:
        super().keep_ranks(kept)
        self.layer.r[self._name] = len(kept)

    def keep_outputs(self, kept: Sequence[int]) -> None:
        """Leave these outputs of the linear module."""
        keep_outputs(self.up, kept)
        self.layer.out_features = len(kept)

    def keep_inputs(self, kept: Sequence[int]) -> None:
        """Leave these inputs of the linear module."""
        keep_inputs(self.down, kept)
        self.layer.in_features = len(kept)

    def remove(self) -> None:
        wrapped = self.layer
        base = wrapped.get_base_layer()
        for key in _HOOKS:  # bottlenecks at the same place
            vars(base)[key].update(vars(wrapped)[key])
        parent, _, name = self.site.path.rpartition(".")
        setattr(self._model.get_submodule(parent), name, base)


class BottleneckSite(LiveSite):
    """A serial or a parallel adapter of ours."""

    def __init__(self, site: Site, model: Any, layout: ModelLayout) -> None:
        super().__init__(site)
        self._model = model
        block = model.get_submodule(layout.layers[site.layer].path)
        self._block, self._group = block, f"i{site.insertion}"
        self._name = site.role.replace(".", "_")

    @property
    def adapter(self) -> Bottleneck:
        """The two thin layers."""
        found = self._block.get_submodule(f"{self._group}.{self._name}")
        assert isinstance(found, Bottleneck)
        return found

    @property
    def down(self) -> nn.Linear:
        return self.adapter.down

    @property
    def up(self) -> nn.Linear:
        return self.adapter.up

    @property
    def scale(self) -> float:
        return self.adapter.scale

    def remove(self) -> None:
        adapter = self.adapter
        for module in self._block.modules():
            for key in _HOOKS:
                table = vars(module)[key]
                for number in [one for one, hook in table.items() if getattr(hook, "__self__", None) is adapter]:
                    del table[number]
        siblings = self._block.get_submodule(self._group)
        del siblings[self._name]
        if not len(siblings):
            delattr(self._block, self._group)


def live_sites(model: Any, layout: ModelLayout, sites: Sequence[Site]) -> dict[str, LiveSite]:
    """The PEFT modules of a composed model, by key."""
    return {
        site.key: LoraSite(site, model)
        if isinstance(model.get_submodule(site.path), BaseTunerLayer) and site.method in ("lora", "rslora")
        else BottleneckSite(site, model, layout)
        for site in sites
    }


def plain(module: Any) -> Any:
    """The base's own linear module in the place of what peft put around it."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def sides(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear module or `Conv1D` as they are now, in whatever peft put around it."""
    module = plain(module)
    names = ("in_features", "out_features") if hasattr(module, "in_features") else ("nx", "nf")
    return int(getattr(module, names[0])), int(getattr(module, names[1]))


def keep_outputs(module: Any, kept: Sequence[int]) -> None:
    """Leave these outputs of a linear module or `Conv1D`, in place: weight and bias are new, smaller tensors."""
    transposed = not isinstance(module, nn.Linear)
    _select(module, "weight", 1 if transposed else 0, kept)
    if getattr(module, "bias", None) is not None:
        _select(module, "bias", 0, kept)
    setattr(module, "nf" if transposed else "out_features", len(kept))


def keep_inputs(module: Any, kept: Sequence[int]) -> None:
    """Leave these inputs of a linear module or `Conv1D`, in place."""
    transposed = not isinstance(module, nn.Linear)
    _select(module, "weight", 0 if transposed else 1, kept)
    setattr(module, "nx" if transposed else "in_features", len(kept))


def scale_inputs(module: Any, factors: torch.Tensor) -> None:
    """Multiply the weights of each input of a linear module or `Conv1D` by its factor `[inputs]`, in place."""
    along = factors.to(module.weight.device)[:, None] if not isinstance(module, nn.Linear) else factors[None, :]
    values = module.weight.detach()
    module.weight.data = (values * along.to(values.device)).to(values.dtype)


def _select(module: nn.Module, name: str, axis: int, kept: Sequence[int]) -> None:
    """Frozen parameters stay the same objects with smaller values, so that they can be given their own back.

    Trained ones become new objects: a graph that is still alive somewhere may hold on to the old shape.
    """
    parameter = getattr(module, name)
    indices = torch.tensor(list(kept), dtype=torch.long, device=parameter.device)
    values = parameter.detach().index_select(axis, indices)
    if parameter.requires_grad:
        setattr(module, name, nn.Parameter(values))
    else:
        parameter.data = values
