"""MiSS in its three forms: what every method promises."""

from tests.contract.method_contract import MethodContract


class TestMiss(MethodContract):
    method = "miss"
    settings = {"rank": 4}


class TestMissBat(MethodContract):
    method = "miss-bat"
    settings = {"rank": 4}


class TestMissMini(MethodContract):
    method = "miss-mini"
    settings = {"rank": 4, "mini_r": 2}
