"""LLaMA-Adapter: prompts that the upper layers attend to through a gate (Zhang et al., ICLR 2024, eq. 2 to 5)."""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import FloatDomain, IntDomain
from autopeft.evaluate.methods.method import PeftMethod

KNOWN = ("gpt2", "llama", "mistral")
"""The model types that peft has it for: it recomputes the queries of each by code of its own."""


class AdaptionPrompt(PeftMethod):
    """A prompt per layer in attention of its own, added to the output at a gate that starts closed."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Models that peft does not know; heads that are not together as wide as the model, which it assumes."""
        if layout.model_type not in KNOWN:
            text = f"peft has it for no model of type {layout.model_type}"
            return [Problem("method", text, ", ".join(KNOWN), f"Leave {self.name} out.")]
        if layout.heads * layout.head_dim != layout.hidden_size:
            text = f"its heads are not together as wide as the model, {layout.hidden_size}"
            return [Problem("method", text, "", f"Leave {self.name} out.")]
        return []

    def layers(self, insertion: Insertion, layout: ModelLayout) -> int:
        """How many layers, counted from the top, get a prompt."""
        return max(1, round(float(insertion.settings["adapter_layers"]) * len(layout.layers)))

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """layers * (adapter_len * hidden_size + 1): a prompt and a gate per layer."""
        width = int(insertion.settings["adapter_len"]) * layout.hidden_size + 1
        return self.layers(insertion, layout) * width

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """The attention of the layers."""
        return frozenset(layer.attention for layer in layout.layers[-self.layers(insertion, layout) :])

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.AdaptionPromptConfig`."""
        from peft import AdaptionPromptConfig

        return AdaptionPromptConfig(
            adapter_len=int(insertion.settings["adapter_len"]), adapter_layers=self.layers(insertion, layout)
        )


METHODS = (
    AdaptionPrompt(
        MethodFacts(
            name="adaption-prompt",
            title="LLaMA-Adapter",
            paper="Zhang et al., ICLR 2024 (arXiv:2303.16199)",
            summary="Prompts that the upper layers attend to through a gate; `adapter_layers` is their share.",
            settings={
                "adapter_len": IntDomain(low=1, high=4096, log=True),
                "adapter_layers": FloatDomain(low=0.01, high=1.0),
            },
            defaults={"adapter_len": 10, "adapter_layers": 1.0},
            knob="adapter_len",
            ladder=(2, 5, 10, 20, 50),
            takes_layers=False,
            takes_modules=False,
            merges=False,
            quantised=True,
            tasks=frozenset((TaskName.CAUSAL_LM,)),  # peft neither trains nor saves a head beside it
            alone=True,
        )
    ),
)
