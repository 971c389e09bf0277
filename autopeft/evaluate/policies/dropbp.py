"""DropBP: the backward pass leaves residual branches out, more often those to which the gradients are less sensitive.

Woo et al., NeurIPS 2024. The forward pass is the plain one, bit for bit. A dropped branch is detached where it joins
the residual stream, so that its activations are not kept and its parameters get no gradient in that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem
from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import FloatDomain
from autopeft.evaluate.policies.draws import stream
from autopeft.evaluate.policies.policy import Context, RunningPolicy, TrainingPolicy
from autopeft.evaluate.policies.probes import probe_rows

_DROP, _ROWS = 6, 7
_STEP = 0.1
_MOST = 0.9
ENDS = (Role.ATTENTION_OUTPUT, Role.FFN_OUT)
"""The last linear module of each residual branch, in the order of the layer."""
_ATTENTION = (Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.ATTENTION_OUTPUT)
_FFN = (Role.FFN_IN, Role.FFN_GATE, Role.FFN_OUT)


def branch_flops(base: Any, layer: LayerLayout, tokens: float) -> tuple[float, float]:
    """Forward multiply-adds, times two, per token of a row of so many tokens: of the attention and of the FFN.

    With square projections and an FFN four times as wide these are the paper's 8 s h^2 + 4 h s^2 and 16 s h^2, divided
    by s. Widths are those of the live model, which a pruning makes differ from layer to layer.
    """
    from autopeft.evaluate.pruning.live import sides

    def linear(roles: Sequence[Role]) -> float:
        found = [sides(base.get_submodule(one.path)) for role in roles if (one := layer.module(role)) is not None]
        return sum(2.0 * into * out for into, out in found)

    output = layer.module(Role.ATTENTION_OUTPUT)
    assert output is not None  # the rules refuse a model without
    all_heads, _ = sides(base.get_submodule(output.path))
    return linear(_ATTENTION) + 4.0 * all_heads * tokens, linear(_FFN)


def branch_widths(base: Any, layer: LayerLayout, layout: ModelLayout, tokens: float) -> tuple[float, float]:
    """Values per token that the backward pass through the attention and through the FFN needs, of frozen modules.

    Queries, keys and values, probabilities and contexts of the attention; of the FFN what goes into its activation, and
    into the product of a gated one. Linear modules that are frozen need none of their inputs.
    """
    from autopeft.evaluate.pruning.live import sides

    def outputs(roles: Sequence[Role]) -> float:
        return sum(
            float(sides(base.get_submodule(one.path))[1]) for role in roles if (one := layer.module(role)) is not None
        )

    output = layer.module(Role.ATTENTION_OUTPUT)
    assert output is not None  # the rules refuse a model without
    context = float(sides(base.get_submodule(output.path))[0])
    probabilities = context / layout.head_dim * tokens
    into = outputs((Role.FFN_IN, Role.FFN_GATE))
    gated = into / 2 if layer.module(Role.FFN_GATE) is not None else 0.0
    return outputs((Role.QUERY, Role.KEY, Role.VALUE, Role.QKV)) + context + probabilities, into + gated


def allocated(sensitivity: Sequence[float], flops: Sequence[float], rate: float) -> tuple[float, ...]:
    """Drop rates per branch: raised by 0.1 where sensitivity times rate stays lowest, up to 0.9 each.

    Ends as soon as the expected cost of what is kept is at most `1 - rate` of the whole. Of equal branches the one
    nearest to the input is raised first.
    """
    tenths = [0] * len(flops)
    most = round(_MOST / _STEP)
    wanted = (1 - rate) * math.fsum(flops)
    while math.fsum(cost * (1 - tenth * _STEP) for cost, tenth in zip(flops, tenths, strict=True)) > wanted * (
        1 + 1e-12
    ):
        free = [place for place, tenth in enumerate(tenths) if tenth < most]
        if not free:
            break
        cheapest = min(free, key=lambda place: (sensitivity[place] * (tenths[place] + 1), place))
        tenths[cheapest] += 1
    return tuple(tenth / most * _MOST for tenth in tenths)


def dropped(
    random: np.random.Generator, rates: Sequence[float], flops: Sequence[float], rate: float, useful: Sequence[int]
) -> frozenset[int]:
    """The branches to drop in one step.

    Each by its rate; then more of those that are left, in a random order, until what is kept costs at most `1 - rate`
    of the whole. One of `useful`, the branches that hold something trainable, always stays.
    """
    gone = {place for place, draw in enumerate(random.random(len(rates))) if draw < rates[place]}
    stays = int(useful[int(random.integers(len(useful)))])
    if set(useful) <= gone:
        gone.discard(stays)
    left = math.fsum(cost for place, cost in enumerate(flops) if place not in gone)
    for place in random.permutation(len(rates)).tolist():
        if left <= (1 - rate) * math.fsum(flops) * (1 + 1e-12):
            break
        if place not in gone and not set(useful) <= gone | {place}:
            gone.add(place)
            left -= flops[place]
    return frozenset(gone)


class _Running(RunningPolicy):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        layout, batches = context.layout, context.batches
        widths = [batch.inputs["input_ids"].shape[1] for batch in batches]
        tokens = sum(widths) / len(widths)
        self._flops = [cost for layer in layout.layers for cost in branch_flops(context.base, layer, tokens)]
        self._widths = [one for layer in layout.layers for one in branch_widths(context.base, layer, layout, tokens)]
        self._rate = float(context.settings["drop"])
        self._rates: tuple[float, ...] = (self._rate,) * len(self._flops)
        self._useful = _useful(context)
        self._turn = max(1, round(float(context.settings["sensitivity_at"]) * context.steps))
        self._gone: frozenset[int] = frozenset()
        self._hooks: list[Any] = []
        for place, path in enumerate(layout.paths(tuple(range(len(layout.layers))), ENDS)):
            # Behind the hooks of adapters, which are part of the branch.
            self._hooks.append(context.base.get_submodule(path).register_forward_hook(self._hook(place)))

    def before_step(self, step: int) -> None:
        if step == self._turn:
            self._rates = allocated(self._sensitivity(step), self._flops, self._rate)
        random = stream(self.context.seed, step, _DROP)
        self._gone = dropped(random, self._rates, self._flops, self._rate, self._useful)

    def weight(self) -> float:
        """In layers of mean width. A branch that is kept saves something where a gradient passes it: where it holds
        something trainable, or joins behind one that does. So does the norm at each joint from there on.
        """
        width = float(self.context.layout.hidden_size)
        passes, saved = self.context.gates.below, 0.0
        for place, inner in enumerate(self._widths):
            useful = place in self._useful
            if place not in self._gone and (passes or useful):
                saved += inner + (width if useful else 0.0)  # what trains needs its input
                passes = True
            saved += width if passes else 0.0
        return saved * len(self.context.layout.layers) / (sum(self._widths) + width * len(self._widths))

    def cut(self) -> frozenset[tuple[int, Role]]:
        return frozenset((place // len(ENDS), ENDS[place % len(ENDS)]) for place in self._gone)

    def state(self) -> dict[str, Any]:
        return {"rates": list(self._rates)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._rates = tuple(state["rates"])

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        super().close()

    def _hook(self, place: int) -> Callable[..., Any]:
        def detach(module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
            return output.detach() if place in self._gone else output

        return detach

    def _sensitivity(self, step: int) -> list[float]:
        """`C_i = sum over parameters of (gradient norm - gradient norm without branch i)^2`, on 16 training rows."""
        rows = probe_rows(self.context.batches, 16, stream(self.context.seed, step, _ROWS))
        whole = self._norms(rows, frozenset())
        return [
            math.fsum(
                (one - other) ** 2 for one, other in zip(whole, self._norms(rows, frozenset({place})), strict=True)
            )
            for place in range(len(self._flops))
        ]

    def _norms(self, rows: Sequence[Any], gone: frozenset[int]) -> list[float]:
        self._gone = gone
        return self.context.gradient_norms(rows)


def _useful(context: Context) -> tuple[int, ...]:
    """The branches that hold something trainable: both of a layer where that cannot be told from where it stands."""
    found: list[int] = []
    for layer in context.layout.layers:
        if layer.index not in context.gates.layers:
            continue
        own = {id(parameter) for parameter in context.gates.parameters(layer.index)}
        holding = [place for place in range(len(ENDS)) if own & _inside(context.base, layer, place)]
        found += [layer.index * len(ENDS) + place for place in holding or range(len(ENDS))]
    return tuple(found)


def _inside(base: Any, layer: LayerLayout, place: int) -> set[int]:
    """The `id` of every parameter that stands in the branch: in its linear modules, or in an adapter named after it."""
    modules = [module for role in (_ATTENTION, _FFN)[place] if (module := layer.module(role)) is not None]
    found = {id(part) for module in modules for part in base.get_submodule(module.path).parameters()}
    adapters = ENDS[place].value.replace(".", "_")
    block = base.get_submodule(layer.path)
    return found | {id(part) for name, part in block.named_parameters() if adapters in name.split(".")}


class DropBp(TrainingPolicy):
    """All layers may train in every step; the branches through which the gradients go are drawn."""

    def misfits(self, candidate: Candidate, layout: ModelLayout) -> list[Problem]:
        """Models whose branches are not known by their last linear modules."""
        lacking = [role.value for role in ENDS if role not in layout.roles()]
        if not lacking:
            return []
        found = f"this model has no {' and '.join(lacking)} in every layer, where dropbp would cut the branches"
        return [Problem("policy", found, "", "Use another policy on it.")]

    def start(self, context: Context) -> RunningPolicy:
        """The policy at work."""
        return _Running(context)


POLICY = DropBp(
    TreatmentFacts(
        name="dropbp",
        title="DropBP",
        paper="Woo et al., NeurIPS 2024 (arXiv:2402.17812)",
        summary="Leaves residual branches out of the backward pass, at random and more often those to which the "
        "gradients are less sensitive; the forward pass is unchanged.",
        settings={"drop": FloatDomain(low=0.05, high=0.9), "sensitivity_at": FloatDomain(low=0.0, high=0.9)},
        defaults={"drop": 0.5, "sensitivity_at": 0.1},
    )
)
