"""OFT, BOFT, HRA, PSOFT and RoAd keep what every method promises."""

from __future__ import annotations

from tests.contract.method_contract import MethodContract


class TestOft(MethodContract):
    method = "oft"
    settings = {"oft_block_size": 4}


class TestBoft(MethodContract):
    method = "boft"
    settings = {"boft_block_size": 4}


class TestHra(MethodContract):
    method = "hra"
    settings = {"rank": 4}
    learning_rate = 3e-2


class TestPsoft(MethodContract):
    method = "psoft"
    settings = {"rank": 4}
    knobs = (2, 4)
    learning_rate = 3e-2


class TestRoad(MethodContract):
    method = "road"
    learning_rate = 1e-1
