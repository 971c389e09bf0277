"""LoRA and its relatives: what every method promises, and what each paper says of its own."""

from tests.contract.method_contract import MethodContract, NewProcessContract


class TestLora(NewProcessContract):
    method = "lora"


class TestRslora(MethodContract):
    method = "rslora"


class TestDora(MethodContract):
    method = "dora"


class TestPissa(NewProcessContract):
    method = "pissa"
