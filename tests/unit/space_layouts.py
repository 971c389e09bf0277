"""Layouts of three families of models, written by hand, and the rules of a LoRA-like method."""

from autopeft.domain.errors import Problem
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain

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


def layout(modules, depth):
    """A model of `depth` equal layers with these modules: role -> (in, out) features."""
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
    return ModelLayout(
        model_type="handmade",
        hidden_size=next(iter(modules.values()))[0],
        heads=12,
        kv_heads=12,
        layers=layers,
        head_paths=("classifier",),
        parameters=1,
        weights_bytes=4,
    )


BERT_6 = layout(BERT, 6)
GPT2_12 = layout(GPT2, 12)
LLAMA_16 = layout(LLAMA, 16)


class LoraRules:
    """What binding asks of a method: its settings, and that no rank is larger than a module."""

    name = "lora"
    settings = {
        "rank": IntDomain(low=1, high=4096),
        "alpha_ratio": FloatDomain(low=0.01, high=100.0),
        "dropout": FloatDomain(low=0.0, high=0.9),
        "variant": ChoiceDomain(values=("lora", "rslora", "dora", "pissa")),
    }

    def problems(self, insertion, model):
        return [
            Problem("rank", f"{insertion.settings['rank']} is larger than {role}", f"1 to {side}")
            for role in insertion.modules
            if (module := model.layers[insertion.layers[0]].module(role))
            and (side := min(module.in_features, module.out_features)) < insertion.settings["rank"]
        ]


METHODS = {"lora": LoraRules()}
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
      settings: {rank: $rank, alpha_ratio: 1, dropout: 0, variant: lora}
  learning_rate: 1e-3
"""
"""A small valid space, that tests change in one place."""
