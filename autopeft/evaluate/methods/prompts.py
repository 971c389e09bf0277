"""Methods that put trained tokens before the text: prompt tuning, P-tuning, prefix tuning, Cartridges.

Prompt tuning: Lester et al., EMNLP 2021; P-tuning: Liu et al. 2021; prefix tuning: Li & Liang, ACL 2021, eq. 3;
Cartridges: arXiv:2506.06266. All of them take positions that texts then lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import Domain, IntDomain
from autopeft.evaluate.methods.method import PeftMethod

TOKENS = "num_virtual_tokens"
FROZEN_TOKENS = 1
"""Of a cartridge, as its paper has it: the first token, which many models attend to whatever it says."""


class Prompt(PeftMethod):
    """Embeddings before those of the text."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Positions that run out; a decoder that classifies.

        Its head looks for the last token of the text in `input_ids`, and peft gives it embeddings alone: it reads the
        last column of the batch, which is padding in all rows but the longest.
        """
        found = beyond_positions(insertion, layout)
        if layout.causal and layout.task is TaskName.SEQUENCE_CLASSIFICATION:
            text = "a decoder would classify by its padding"
            found.append(
                Problem("method", text, "encoders, or task causal-lm", f"Take prefix-tuning or leave {self.name} out.")
            )
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """num_virtual_tokens * embedding_size."""
        return int(insertion.settings[TOKENS]) * layout.embedding_size

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """The place before the text."""
        return frozenset({"prompt"})

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.PromptTuningConfig`; the prompt starts from embeddings of random tokens, as the paper advises."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            num_virtual_tokens=int(insertion.settings[TOKENS]), prompt_tuning_init="SAMPLE_VOCAB", **sizes(layout)
        )


class PTuning(Prompt):
    """Embeddings before those of the text, made by a network of three linear modules that is not kept."""

    exact_in_half_precision = False  # the network computes in float32, its outputs are kept in the base's dtype

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Tokens k, embedding e, hidden h: k e + (e h + h) + (h h + h) + (h e + e)."""
        tokens, width = int(insertion.settings[TOKENS]), layout.embedding_size
        hidden = int(insertion.settings["encoder_hidden_size"])
        return tokens * width + 2 * width * hidden + hidden * hidden + 2 * hidden + width

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.PromptEncoderConfig`."""
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            num_virtual_tokens=int(insertion.settings[TOKENS]),
            encoder_hidden_size=int(insertion.settings["encoder_hidden_size"]),
            **sizes(layout),
        )


class Prefix(PeftMethod):
    """Keys and values before those of the text, in every layer."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Positions that run out; bodies without a cache; encoders whose head peft would not reach."""
        found = beyond_positions(insertion, layout)
        if not layout.takes_cache:
            text = "the model takes no keys and values from before the text"
            found.append(Problem("method", text, "models with past_key_values", f"Leave {self.name} out."))
        elif not layout.causal and [path for path in layout.head_paths if "." not in path] != ["classifier"]:
            # peft calls the body and `classifier` itself, and so passes over what an encoder has in between.
            text = f"parts of the model's head would be left out: {', '.join(layout.head_paths)}"
            found.append(Problem("method", text, "a head that is `classifier` alone", f"Leave {self.name} out."))
        return found

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """num_virtual_tokens * 2 * layers * kv_heads * head_dim: a key and a value per token and layer."""
        return int(insertion.settings[TOKENS]) * cache_width(layout)

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """The place before the text."""
        return frozenset({"prompt"})

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.PrefixTuningConfig`; it starts at zero, as peft advises where there is no text to start from."""
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            num_virtual_tokens=int(insertion.settings[TOKENS]), init_weights="zero", **cache_sizes(layout)
        )


class Cartridge(Prefix):
    """A prefix whose first token stays as it was drawn."""

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """(num_virtual_tokens - 1) * 2 * layers * kv_heads * head_dim."""
        return (int(insertion.settings[TOKENS]) - FROZEN_TOKENS) * cache_width(layout)

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """A `peft.CartridgeConfig`, drawn at random (the paper's second way to start)."""
        from peft import CartridgeConfig

        return CartridgeConfig(
            num_virtual_tokens=int(insertion.settings[TOKENS]),
            num_frozen_tokens=FROZEN_TOKENS,
            **cache_sizes(layout),
        )


def beyond_positions(insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    """A problem where the prompt and the longest text together are longer than the model's positions."""
    tokens, most = int(insertion.settings[TOKENS]), layout.max_positions
    if most is None:
        return []
    text = min(layout.text_tokens or 1, most)
    if tokens + text <= most:
        return []
    said = f"{tokens} tokens before texts of up to {text} need more than the {most} positions of the model"
    step = f"Lower data.max_tokens to {most - tokens} or fewer." if tokens < most else "Choose fewer tokens."
    return [Problem(TOKENS, said, f"up to {most - text}" if text < most else "", step)]


def sizes(layout: ModelLayout) -> dict[str, int]:
    """What a prompt must know of the model; peft finds it only in configurations of the usual names."""
    return {
        "token_dim": layout.embedding_size,
        "num_layers": len(layout.layers),
        "num_attention_heads": layout.heads,
        "num_transformer_submodules": 1,
    }


def cache_sizes(layout: ModelLayout) -> dict[str, int]:
    """The same for keys and values."""
    return {**sizes(layout), "token_dim": layout.kv_heads * layout.head_dim, "num_attention_heads": layout.kv_heads}


def cache_width(layout: ModelLayout) -> int:
    """Numbers that the keys and values of one token are, over all layers."""
    return 2 * len(layout.layers) * layout.kv_heads * layout.head_dim


def facts(
    name: str,
    title: str,
    paper: str,
    summary: str,
    settings: Mapping[str, Domain] | None = None,
    defaults: Mapping[str, Setting] | None = None,
    low: int = 1,
) -> MethodFacts:
    """The facts of a method that puts tokens before the text."""
    return MethodFacts(
        name=name,
        title=title,
        paper=paper,
        summary=summary,
        settings={TOKENS: IntDomain(low=low, high=4096, log=True), **(settings or {})},
        defaults={TOKENS: 20, **(defaults or {})},
        knob=TOKENS,
        ladder=(5, 10, 20, 50, 100),
        takes_layers=False,
        takes_modules=False,
        merges=False,
        quantised=True,
        alone=True,
    )


METHODS = (
    Prompt(
        facts(
            "prompt-tuning",
            "Prompt Tuning",
            "Lester et al., EMNLP 2021 (arXiv:2104.08691)",
            "Embeddings of made-up tokens before the text.",
        )
    ),
    PTuning(
        facts(
            "p-tuning",
            "P-Tuning",
            "Liu et al. 2021 (arXiv:2103.10385)",
            "Embeddings before the text, made by a small network while they are trained.",
            {"encoder_hidden_size": IntDomain(low=1, high=4096, log=True)},
            {"encoder_hidden_size": 128},
        )
    ),
    Prefix(
        facts(
            "prefix-tuning",
            "Prefix Tuning",
            "Li & Liang, ACL 2021 (arXiv:2101.00190)",
            "Keys and values of made-up tokens before the text, in every layer.",
        )
    ),
    Cartridge(
        facts(
            "cartridge",
            "Cartridges",
            "arXiv:2506.06266",
            "A prefix whose first token stays frozen.",
            low=FROZEN_TOKENS + 1,
        )
    ),
)
