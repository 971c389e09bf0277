"""FourierFT, WaveFT and C3A keep what every method promises."""

from __future__ import annotations

from tests.contract.method_contract import MethodContract


class TestFourierFt(MethodContract):
    method = "fourierft"
    kinds = ("bert", "gpt2", "llama")
    settings = {"n_frequency": 40}
    knobs = (10, 40)
    learning_rate = 3e-2


class TestWaveFt(MethodContract):
    method = "waveft"
    kinds = ("bert", "gpt2", "llama")
    settings = {"n_frequency": 40}
    knobs = (10, 40)


class TestC3a(MethodContract):
    method = "c3a"
    settings = {"block_size": 4}
    knobs = (8, 4)
    learning_rate = 1e-1
