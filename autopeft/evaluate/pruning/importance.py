"""How much each PEFT module and each of its ranks matters, summed on the device while the estimation trains.

Light-PEFT (Gu et al., Findings of ACL 2024), section 3.2. `importance_reference.py` says the same slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from autopeft.evaluate.pruning.live import LiveSite, LoraSite


class Importance:
    """Running sums over the second half of the estimation's steps; nothing is copied to the host before the end."""

    def __init__(self, model: Any, sites: Iterable[LiveSite], steps: int, passes: int) -> None:
        """Watch the sites of a live model through a training of `steps` steps of `passes` backward passes each."""
        self._first = steps // 2 * passes
        self._per_step = passes
        self._forwards = 0
        self._tokens: torch.Tensor | None = None
        self._base: dict[str, torch.Tensor] = {}
        self._modules: dict[str, torch.Tensor] = {}
        self._uses: dict[str, int] = {}
        """How often each module ran: more than once in a pass where layers share it, or where checkpointing computes it
        again, which leaves out the end of a block."""
        self._ranks: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(self._forward, with_kwargs=True)]
        for site in sites:
            self._watch(model, site)

    def modules(self) -> dict[str, float]:
        """By key of the site: mean over its uses of the mean over real tokens of ||delta|| / ||base|| per token."""
        return {key: float(total) / max(1, self._uses[key]) for key, total in self._modules.items()}

    def ranks(self) -> dict[str, torch.Tensor]:
        """By key of the site: mean over steps of |mean_i A dL/dA| + |mean_o B dL/dB|, float64 `[ranks]` on the CPU."""
        steps = max(1, (self._forwards - self._first) // self._per_step)
        return {key: total.double().cpu() / steps for key, total in self._ranks.items()}

    def state(self) -> dict[str, Any]:
        """The sums so far, on the CPU; between two steps."""
        return {
            "forwards": self._forwards,
            "uses": dict(self._uses),
            "modules": {key: total.to("cpu", copy=True) for key, total in self._modules.items()},
            "ranks": {key: total.to("cpu", copy=True) for key, total in self._ranks.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, as if never interrupted."""
        self._forwards = int(state["forwards"])
        self._uses = {key: int(uses) for key, uses in state["uses"].items()}
        for name, sums in (("modules", self._modules), ("ranks", self._ranks)):
            for key, total in sums.items():
                total.copy_(state[name][key])

    def remove(self) -> None:
        """Take every hook out of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._base, self._tokens = {}, None

    @property
    def _collecting(self) -> bool:
        return torch.is_grad_enabled() and self._forwards > self._first

    def _forward(self, model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and model.training:  # not a validation in between
            self._forwards += 1
            self._tokens = named.get("attention_mask")

    def _watch(self, model: Any, live: LiveSite) -> None:
        key, device = live.site.key, live.down.weight.device
        self._modules[key] = torch.zeros((), dtype=torch.float32, device=device)
        self._uses[key] = 0
        self._ranks[key] = torch.zeros(live.site.ranks, dtype=torch.float32, device=device)
        if isinstance(live, LoraSite):
            # peft calls the frozen module first and the two thin matrices after it.
            self._on(live.layer.get_base_layer().register_forward_hook(self._note_base(key)))
            self._on(live.up.register_forward_hook(self._note_delta(key, live.scale)))
        else:
            # The sublayer's own output, before anything is added to it, is what both kinds add to; a serial adapter's
            # residual input is that output.
            end = model.get_submodule(live.site.path)
            self._on(end.register_forward_hook(self._note_base(key), prepend=True))
            self._on(live.adapter.register_forward_hook(self._note_delta(key, 1.0)))  # type: ignore[attr-defined]
        self._on(live.down.weight.register_post_accumulate_grad_hook(self._note_gradient(key, 1)))
        self._on(live.up.weight.register_post_accumulate_grad_hook(self._note_gradient(key, 0)))

    def _on(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)

    def _note_base(self, key: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            if self._collecting:
                self._base[key] = _norms(output)

        return hook

    def _note_delta(self, key: str, scale: float) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            if not self._collecting:
                return
            ratios = scale * _norms(output) / self._base.pop(key)
            if self._tokens is None:
                found = ratios.mean()
            else:
                real = self._tokens.reshape(-1).bool()
                found = torch.where(real, ratios, 0.0).sum() / real.sum()
            self._modules[key] += _finite(found)
            self._uses[key] += 1

        return hook

    def _note_gradient(self, key: str, features: int) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            # The gradient of the whole step is there after its last backward pass.
            if self._forwards <= self._first or self._forwards % self._per_step or parameter.grad is None:
                return
            with torch.no_grad():
                self._ranks[key] += _finite((parameter * parameter.grad).mean(dim=features).abs())

        return hook


def _norms(output: torch.Tensor) -> torch.Tensor:
    """Length of each token's vector, float32 `[tokens]`, rows of the batch one after another."""
    return torch.linalg.vector_norm(output.detach(), dim=-1, dtype=torch.float32).reshape(-1)


def _finite(values: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
