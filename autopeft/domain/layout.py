"""What a base model offers to PEFT methods, found by inspecting it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Role(StrEnum):
    """What a linear module does in its layer; `attention.qkv` is one matrix for all three."""

    QUERY = "attention.query"
    KEY = "attention.key"
    VALUE = "attention.value"
    QKV = "attention.qkv"
    ATTENTION_OUTPUT = "attention.output"
    FFN_IN = "ffn.in"
    FFN_GATE = "ffn.gate"
    FFN_OUT = "ffn.out"


class TaskName(StrEnum):
    """What a model with its head is trained for; regression is a classification with one output."""

    SEQUENCE_CLASSIFICATION = "sequence-classification"
    CAUSAL_LM = "causal-lm"


class ModuleLayout(BaseModel):
    """One linear module of one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    path: str
    """Dotted path from the model that `AutoModelFor…` returns."""
    in_features: int
    out_features: int
    bias: bool = False
    transposed: bool = False
    """Whether its weight is held as [in_features, out_features]: GPT-2's `Conv1D`, no `nn.Linear`."""


class NormLayout(BaseModel):
    """One normalisation of one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Dotted path from the model that `AutoModelFor…` returns."""
    parameters: int
    """Weights and biases."""


class LayerLayout(BaseModel):
    """One block of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    path: str
    modules: tuple[ModuleLayout, ...]
    norms: tuple[NormLayout, ...] = ()
    attention: str = ""
    """Path of the submodule that holds the query, key and value projections; empty where there is none."""
    parameters: int = 0
    """All parameters of the block."""
    biases: int = 0
    """Parameters of the block that are called `bias`, those of its norms included."""

    def module(self, role: str) -> ModuleLayout | None:
        """The module of this role, or None where the layer has none."""
        return next((module for module in self.modules if module.role == role), None)


class ModelLayout(BaseModel):
    """The layers, linear modules and sizes of one base model with its task head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    """`config.model_type`, for messages only; nothing may branch on it."""
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int = 0
    """Width of one head of keys and values."""
    layers: tuple[LayerLayout, ...]
    head_paths: tuple[str, ...]
    """Modules outside the layers that are new for the task and trained whole (`classifier`, `score`).

    Empty for causal language modelling, whose head is the base model's own.
    """
    head_parameters: int = 0
    """Parameters of these modules."""
    parameters: int
    """Parameters of the base model with its head."""
    weights_bytes: int
    """Bytes of these parameters and of the buffers, in the dtype they are loaded in."""
    max_positions: int | None = None
    """Longest sequence in tokens that the model takes, where its config says so."""
    text_tokens: int | None = None
    """Longest text in tokens that it will be given, where that is known."""
    embedding_size: int = 0
    """Width of a token's embedding, which some models widen to `hidden_size` before the first layer."""
    takes_cache: bool = False
    """Whether its body takes keys and values of tokens before the text (`past_key_values`)."""
    task: TaskName = TaskName.SEQUENCE_CLASSIFICATION
    causal: bool = False
    """Whether a token sees only those before it: a decoder."""
    quantised: bool = False
    """Whether the frozen weights are held in 4 or 8 bits."""

    def roles(self) -> tuple[Role, ...]:
        """The roles that every layer has, in the order of `Role`."""
        return tuple(role for role in Role if all(layer.module(role) for layer in self.layers))

    def paths(self, layers: tuple[int, ...], roles: tuple[str, ...]) -> tuple[str, ...]:
        """Paths of the modules with these roles in these layers, layer by layer.

        Raises:
            KeyError: where a layer or a role is not in the model.
        """
        found = []
        for index in layers:
            for role in roles:
                module = self.layers[index].module(role) if 0 <= index < len(self.layers) else None
                if module is None:
                    raise KeyError(f"layer {index} has no {role}")
                found.append(module.path)
        return tuple(found)
