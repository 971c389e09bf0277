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
    kinds = ("bert", "gpt2")  # Llama has no biases
    learning_rate = 5e-2
    falls = 0.02  # a random decoder of 16 channels learns next to nothing by its biases


class TestLayerNorm(MethodContract):
    method = "layernorm"


class TestFullLayers(MethodContract):
    method = "full-layers"


class TestFull(MethodContract):
    method = "full"
