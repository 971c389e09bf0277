"""Low-rank updates that are no LoRA, and products of matrices: what every method promises."""

from tests.contract.method_contract import MethodContract


class TestLoha(MethodContract):
    method = "loha"
    learning_rate = 3e-2


class TestLokr(MethodContract):
    method = "lokr"
    learning_rate = 3e-2


class TestHira(MethodContract):
    method = "hira"
    settings = {"rank": 4}
    learning_rate = 3e-2


class TestDelora(MethodContract):
    method = "delora"


class TestGralora(MethodContract):
    method = "gralora"
    settings = {"rank": 4}


class TestGlora(MethodContract):
    method = "glora"
    settings = {"rank": 4}


class TestPeanut(MethodContract):
    method = "peanut"
    settings = {"rank": 4}
    learning_rate = 3e-2
