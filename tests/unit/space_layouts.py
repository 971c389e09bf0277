"""Layouts of three families of models, written by hand, and rules of methods of every shape."""

from autopeft.domain.errors import Problem
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role, TaskName
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import FloatDomain, IntDomain

BERT = {
    Role.QUERY: (384, 384),
    Role.KEY: (384, 384),
    Role.VALUE: (384, 384),
    Role.ATTENTION_OUTPUT: (384, 384),
    Role.FFN_IN: (384, 1536),
    Role.FFN_OUT: (1536, 384),
}
GPT2 = {
    Role.QKV: (768, 2304),
    Role.ATTENTION_OUTPUT: (768, 768),
    Role.FFN_IN: (768, 3072),
    Role.FFN_OUT: (3072, 768),
}
LLAMA = {
    Role.QUERY: (2048, 2048),
    Role.KEY: (2048, 256),
    Role.VALUE: (2048, 256),
    Role.ATTENTION_OUTPUT: (2048, 2048),
    Role.FFN_IN: (2048, 5632),
    Role.FFN_GATE: (2048, 5632),
    Role.FFN_OUT: (5632, 2048),
}


def layout(modules, depth, **changes):
    """A model of `depth` equal layers with these modules: role -> (in, out) features; `changes` are further fields."""
    layers = tuple(
        LayerLayout(
            index=index,
            path=f"layers.{index}",
            modules=tuple(
                ModuleLayout(
                    role=role, path=f"layers.{index}.{role.value}", in_features=sizes[0], out_features=sizes[1]
                )
                for role, sizes in modules.items()
            ),
        )
        for index in range(depth)
    )
    fields = {
        "model_type": "handmade",
        "hidden_size": next(iter(modules.values()))[0],
        "heads": 12,
        "kv_heads": 12,
        "layers": layers,
        "head_paths": ("classifier",),
        "parameters": 1,
        "weights_bytes": 4,
    }
    return ModelLayout(**{**fields, **changes})


BERT_6 = layout(BERT, 6)
GPT2_12 = layout(GPT2, 12)
LLAMA_16 = layout(LLAMA, 16)


class Rules:
    """What binding asks of a method; without rules of its own, it fits wherever its settings do."""

    def __init__(self, name, settings, defaults, **facts):
        self.facts = MethodFacts(
            name=name, title=name.upper(), paper="", summary="", settings=settings, defaults=defaults, **facts
        )

    def default_modules(self, model):
        return ("attention.query", "attention.value") if self.facts.takes_modules else ()

    def problems(self, insertion, model):
        if model.task not in self.facts.tasks:
            return [Problem("method", f"{self.facts.name} cannot be trained for {model.task}")]
        return []

    def trainable(self, insertion, model):
        raise AssertionError("binding need not count")

    def occupied(self, insertion, model):
        if self.facts.takes_modules:
            return frozenset(model.paths(insertion.layers, insertion.modules))
        return frozenset(f"{self.facts.name}:{index}" for index in insertion.layers)


class LoraRules(Rules):
    """No rank is larger than a module."""

    def __init__(self, name="lora", **facts):
        settings = {
            "rank": IntDomain(low=1, high=4096),
            "alpha_ratio": FloatDomain(low=0.01, high=100.0),
            "dropout": FloatDomain(low=0.0, high=0.9),
        }
        defaults = {"rank": 8, "alpha_ratio": 2.0, "dropout": 0.0}
        super().__init__(name, settings, defaults, knob="rank", ladder=(1, 2, 4, 8, 16, 512), **facts)

    def problems(self, insertion, model):
        return super().problems(insertion, model) or [
            Problem("rank", f"{insertion.settings['rank']} is larger than {role}", f"1 to {side}")
            for role in insertion.modules
            if (module := model.layers[insertion.layers[0]].module(role))
            and (side := min(module.in_features, module.out_features)) < insertion.settings["rank"]
        ]


class TopRules(Rules):
    """A method for the last layers only."""

    def problems(self, insertion, model):
        depth = len(model.layers)
        if insertion.layers == tuple(range(depth - len(insertion.layers), depth)):
            return super().problems(insertion, model)
        return [Problem("layers", f"{self.facts.name} takes the last layers only")]


_SIZE = {"size": IntDomain(low=1, high=4096)}
_LENGTH = {"length": IntDomain(low=1, high=512)}
METHODS = {
    rules.facts.name: rules
    for rules in (
        *(LoraRules(name) for name in ("lora", "rslora", "dora", "pissa")),
        Rules("bump", _SIZE, {"size": 48}, knob="size", ladder=(1, 3, 6), takes_modules=False),
        Rules(
            "prompt",
            _LENGTH,
            {"length": 8},
            knob="length",
            ladder=(4, 8),
            takes_layers=False,
            takes_modules=False,
            tasks=frozenset({TaskName.CAUSAL_LM}),
            learning_rates=(1e-2, 3e-1),
        ),
        Rules("bias", {}, {}, takes_modules=False),
        TopRules("top", _LENGTH, {"length": 8}, knob="length", ladder=(4,), takes_modules=False),
        Rules("whole", {}, {}, takes_layers=False, takes_modules=False, alone=True, learning_rates=(1e-6, 1e-4)),
    )
}
"""Methods of every shape: with and without knob, layers and modules, for the top only, for one task, alone."""
SMALL = """\
name: small
summary: For tests.
parameters:
  rank: {kind: choice, values: [1, 2, 4], ordered: true}
  layers: {kind: layers, modes: top-k}
  modules:
    kind: modules
    sets: {attention-qv: [attention.query, attention.value], all-linear: all}
candidate:
  insertions:
    - method: lora
      layers: $layers
      modules: $modules
      settings: {rank: $rank, alpha_ratio: 1, dropout: 0}
  learning_rate: 1e-3
"""
"""A small valid space, that tests change in one place."""
