"""A base model without weights, in which candidates are put in, trained for one step and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autopeft.domain.candidate import Candidate
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.evaluate.insertion import Inserted, insert
from autopeft.evaluate.memory.depth import cut_to
from autopeft.evaluate.memory.emulation import on_meta
from autopeft.evaluate.memory.kinds import EVERYTHING, Pattern, narrowed
from autopeft.evaluate.memory.optimisers import optimiser_of
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.stand_ins import complete
from autopeft.evaluate.memory.step import Timeline, traced_step
from autopeft.evaluate.memory.tracker import apart
from autopeft.evaluate.methods import METHODS, Calibration
from autopeft.evaluate.policies.gates import Gates
from autopeft.evaluate.pruning.phase import wiring_of
from autopeft.evaluate.pruning.wiring import Wiring
from autopeft.evaluate.train import training_mode
from autopeft.evaluate.untouched import Untouched

STARTS_LIKE = {"eva": "lora", "corda": "lora", "lora-ga": "lora", "spt-ranks": "lora"}
"""Methods whose start looks at data, and which are another one afterwards."""
NEED_VALUES = frozenset(("kasa", "frod", "adamss", "adamss-asa", "shira"))
"""Methods of peft whose start computes with the values of weights (singular vectors, clusters, chosen positions): they
are put into blocks with drawn weights and then moved to `meta`."""
_SIZES = 4
_STEPS = 100
"""So many planned steps are told to methods that ask; memory does not depend on it."""


class MetaModel:
    """A model on `meta` with its layout, ready for one candidate after another."""

    def __init__(self, model: Any, layout: ModelLayout) -> None:
        """`model` is one that `AutoModelFor…` returned, built on `meta`, its head in float32 and everything frozen."""
        self._model = model
        self.layout = layout
        with on_meta():
            self._untouched = Untouched(model)

    @property
    def dtype(self) -> torch.dtype:
        """Of its first floating-point weight."""
        return next(part.dtype for part in self._model.parameters() if part.is_floating_point())

    @property
    def attention(self) -> str:
        """Transformers' name of its attention's implementation."""
        return str(getattr(self._model.config, "_attn_implementation", None) or "eager")

    def timeline(
        self,
        candidate: Candidate,
        setup: Setup,
        layers: Sequence[int] | None = None,
        pattern: Pattern = EVERYTHING,
        changed: Callable[[Untouched, Inserted], None] | None = None,
    ) -> Timeline:
        """One step of a candidate's training.

        Args:
            candidate: Its insertions are put in; its policy is not acted upon, and its pruning only by `changed`.
            setup: Of the step.
            layers: Train a model of these layers alone; all by default.
            pattern: What trains in the step, by the layers of the whole model.
            changed: Called with what was put in place, for changes before the optimiser is made: masks, a pruning.

        Raises:
            What putting the candidate in raises: `UserError` where it does not fit, others where it cannot be traced.
        """
        chosen = list(range(len(self.layout.layers))) if layers is None else list(layers)
        small, step = narrowed(_plain(candidate), pattern, chosen)
        if changed is not None:
            small = small.model_copy(update={"pruning": candidate.pruning})  # puts everything in place
        with cut_to(self._model, self.layout, chosen) as layout, self._put_in(small, layout, setup) as inserted:
            if changed is not None:
                with on_meta(setup.padded):
                    changed(self._untouched, inserted)
            if setup.evaluating:
                inserted.model.eval()
            else:
                training_mode(inserted.model, inserted.base, layout, checkpointing=setup.checkpointing)
            if setup.checkpointing:
                inserted.base.gradient_checkpointing_enable({"use_reentrant": False})
            with on_meta(setup.padded):
                optimizer = _optimizer(inserted, setup)
            parameters = inserted.trainable()
            return traced_step(
                inserted.model,
                [inserted.base.get_submodule(layer.path) for layer in layout.layers],
                self._untouched.owns,
                optimizer,
                batch_of(inserted.base, layout, setup),
                setup,
                gate=lambda: _gate(inserted, layout, parameters, step),
                after_step=lambda: inserted.after_step(1),
            )

    def wiring(self, candidate: Candidate, setup: Setup) -> Wiring:
        """How the attention is told of its heads: the likeliest way that fits the shapes, since values cannot tell.

        Raises:
            UserError: where the candidate's pruning does not fit the model.
        """
        with on_meta(padded=False):
            batch = batch_of(self._model, self.layout, setup)
            return wiring_of(self._model, candidate, self.layout, batch, nullcontext)

    @contextmanager
    def _put_in(self, candidate: Candidate, layout: ModelLayout, setup: Setup) -> Iterator[Inserted]:
        needs_values = any(insertion.method in NEED_VALUES for insertion in candidate.insertions)
        calibration = Calibration([batch_of(self._model, layout, setup)], nullcontext)
        try:
            self._model.config.use_cache = setup.caches and self._model.config.use_cache
            if needs_values:
                with _with_values(self._model, layout) as wholes:
                    inserted = insert(self._untouched, candidate, layout, 0, steps=_STEPS, calibration=calibration)
                    wholes.append(inserted.model)
            else:
                with on_meta(setup.padded):
                    inserted = insert(self._untouched, candidate, layout, 0, steps=_STEPS, calibration=calibration)
                    complete(inserted.model)
                    for companion in inserted.companions:
                        companion.fill()
            if setup.target == "cuda":
                leave_on_host(inserted.model)
            yield inserted
        finally:
            with on_meta():
                self._untouched.restore()


def leave_on_host(model: nn.Module) -> None:
    """Put what peft never moves to the device of the base model on the host: buffers of an adapter's layer itself.

    peft moves what lies in dictionaries by adapter. In 0.21 this leaves the permutations of BOFT, each as large as a
    weight, which every forward pass then copies to the device. On the host they are one number here, seen as many.
    """
    for module in model.modules():
        for name, buffer in module._buffers.items() if isinstance(module, BaseTunerLayer) else ():
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[name] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)


def _plain(candidate: Candidate) -> Candidate:
    """The candidate without starts that look at data, which leave nothing behind that memory would tell."""
    insertions = []
    for insertion in candidate.insertions:
        name = STARTS_LIKE.get(insertion.method)
        if name is not None:
            facts = METHODS[name].facts
            known = {key: value for key, value in insertion.settings.items() if key in facts.settings}
            if insertion.method == "spt-ranks":  # the budget is spread evenly here, because data would spread it
                known["rank"] = max(1, round(float(insertion.settings["budget"]) * int(insertion.settings["rank"])))
            insertion = insertion.model_copy(update={"method": name, "settings": {**facts.defaults, **known}})
        insertions.append(insertion)
    return candidate.model_copy(update={"insertions": tuple(insertions)})


def batch_of(model: Any, layout: ModelLayout, setup: Setup) -> dict[str, torch.Tensor]:
    """Arguments of the model's forward pass: `[rows, tokens]` of ids and mask, and labels."""
    shape = (setup.rows, setup.tokens)

    def ids(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    found = {"input_ids": ids(*shape), "attention_mask": ids(*shape)}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        found["token_type_ids"] = ids(*shape)
    if layout.task is TaskName.CAUSAL_LM:
        return found | {"labels": ids(*shape)}
    regression = model.config.problem_type == "regression"
    labels = torch.empty(setup.rows, dtype=torch.float32, device="meta") if regression else ids(setup.rows)
    return found | {"labels": labels}


def _optimizer(inserted: Inserted, setup: Setup) -> torch.optim.Optimizer:
    if setup.optimizer == "adamw" or (inserted.method is not None and METHODS[inserted.method.name].facts.alone):
        return inserted.optimizer(1e-3, 0.01)
    return optimiser_of(inserted.trainable(), setup)


def _gate(inserted: Inserted, layout: ModelLayout, parameters: Sequence[nn.Parameter], pattern: Pattern) -> None:
    """Close the layers that do not train, and detach what is cut off."""
    if pattern.open is not None:
        gates = Gates(inserted.base, layout, parameters)
        gates.set(pattern.open & set(gates.layers))
    for index, role in pattern.cut:
        module = layout.layers[index].module(role)
        if module is not None:
            # Behind the hooks of adapters, which are part of the branch.
            inserted.base.get_submodule(module.path).register_forward_hook(lambda _, __, output: output.detach())


@contextmanager
def _with_values(model: Any, layout: ModelLayout) -> Iterator[list[nn.Module]]:
    """Inside, the model's blocks have drawn weights on the CPU; then its own are back, and what is new is on `meta`.

    Yields a list for what was made of the model.
    """
    draw = torch.Generator().manual_seed(0)
    own: dict[int, nn.Parameter] = {}
    stand_ins: list[nn.Parameter] = []
    for layer in layout.layers:
        for module in model.get_submodule(layer.path).modules():
            for name, part in module.named_parameters(recurse=False):
                drawn = torch.randn(part.shape, generator=draw).to(part.dtype) / 32
                stand_in = nn.Parameter(drawn, requires_grad=part.requires_grad)
                module._parameters[name] = stand_in
                stand_ins.append(stand_in)
                own[id(stand_in)] = part
    wholes: list[nn.Module] = []
    yield wholes
    moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def on_meta_now(tensor: torch.Tensor) -> torch.Tensor:
        """One new tensor for each old one, which is kept, so that no other gets its identity."""
        if tensor.numel() <= _SIZES and not tensor.is_floating_point():
            return tensor  # the shape of something, which the forward pass reads
        if id(tensor) not in moved:
            new = tensor.detach().to("meta")
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            moved[id(tensor)] = (tensor, new)
        return moved[id(tensor)][1]

    for module in {id(one): one for whole in (model, *wholes) for one in whole.modules()}.values():
        for name, part in module.named_parameters(recurse=False):
            if id(part) in own:
                module._parameters[name] = own[id(part)].requires_grad_(part.requires_grad)
            elif part.device.type != "meta":
                module._parameters[name] = on_meta_now(part)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device.type != "meta":
                module._buffers[name] = on_meta_now(buffer)
    for kept, key in apart(model):
        kept[key] = on_meta_now(kept[key])
