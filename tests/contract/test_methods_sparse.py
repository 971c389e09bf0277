"""SHiRA, Super-Tuning, OSF, (IA)3, BEFT and LN tuning keep what every method promises."""

from __future__ import annotations

from tests.contract.method_contract import MethodContract, NewProcessContract


class TestShira(NewProcessContract):
    method = "shira"
    settings = {"rank": 2}


class TestSupertuning(MethodContract):
    method = "supertuning"
    settings = {"sparsity": 0.8}
    knobs = (0.9, 0.8)


class TestIa3(MethodContract):
    method = "ia3"
    kinds = ("bert", "gpt2", "llama")
    learning_rate = 1e-1


class TestBeft(MethodContract):
    method = "beft"
    learning_rate = 3e-2
    steps = 40


class TestLnTuning(MethodContract):
    method = "ln-tuning"
    kinds = ("bert", "gpt2", "llama")
    learning_rate = 1e-1


class TestOsf(MethodContract):
    method = "osf"
    settings = {"effective_rank": 0.75}
    knobs = (0.75, 0.5)
    learning_rate = 3e-2
