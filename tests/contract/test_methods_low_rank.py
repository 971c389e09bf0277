"""Low-rank updates that are no LoRA, and products of matrices: what every method promises."""

from tests.contract.method_contract import MethodContract, NewProcessContract


class TestLoha(NewProcessContract):
    method = "loha"
    learning_rate = 3e-2


class TestLokr(MethodContract):
    method = "lokr"
    learning_rate = 3e-2


class TestHira(NewProcessContract):
    method = "hira"
    settings = {"rank": 4}
    learning_rate = 3e-2


class TestDelora(MethodContract):
    method = "delora"


class TestGralora(MethodContract):
    method = "gralora"
    settings = {"rank": 4}


class TestGlora(NewProcessContract):
    method = "glora"
    settings = {"rank": 4}


class TestPeanut(MethodContract):
    method = "peanut"
    settings = {"rank": 4}
    learning_rate = 3e-2
