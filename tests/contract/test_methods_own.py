"""The methods that are ours: what every method promises."""

from tests.contract.method_contract import MethodContract


class TestSerial(MethodContract):
    method = "serial"
    settings = {"size": 8}
    learning_rate = 3e-2


class TestParallel(MethodContract):
    method = "parallel"
    settings = {"size": 4}


class TestBitFit(MethodContract):
    method = "bitfit"
    kinds = ("bert", "opt")  # Llama has no biases
    learning_rate = 2e-2


class TestLayerNorm(MethodContract):
    method = "layernorm"


class TestFullLayers(MethodContract):
    method = "full-layers"


class TestFull(MethodContract):
    method = "full"


class TestPrefix(MethodContract):
    method = "prefix"
    kinds = ("bert", "llama", "deberta-v2")
    settings = {"length": 4}
    starts_as_base = False  # a small random prefix takes a share of the attention from the first step
    learning_rate = 0.1
    steps = 30


class TestReparameterisedPrefix(TestPrefix):
    kinds = ("bert", "llama")
    settings = {"length": 4, "bottleneck": 12}
