"""Methods that work in subspaces of the frozen weight: what every method promises."""

from tests.contract.method_contract import MethodContract


class TestDeft(MethodContract):
    method = "deft"
    settings = {"rank": 4}
    learning_rate = 3e-2


class TestPara(MethodContract):
    method = "para"
    settings = {"rank": 4}
    learning_rate = 3e-2
    starts_as_base = False  # it takes a subspace out from the first step on


class TestFrod(MethodContract):
    method = "frod"
    settings = {"sparse_rate": 0.1}
    knobs = (0.01, 0.1)


class TestAdamss(MethodContract):
    method = "adamss"
    settings = {"rank": 4}
    learning_rate = 3e-2
