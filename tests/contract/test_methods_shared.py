"""Methods whose numbers or frozen matrices are shared by modules and layers: what every method promises."""

from tests.contract.method_contract import MethodContract


class TestVera(MethodContract):
    method = "vera"
    learning_rate = 3e-2


class TestPvera(MethodContract):
    method = "pvera"
    learning_rate = 3e-2


class TestRandLora(MethodContract):
    method = "randlora"
    settings = {"rank": 4}
    knobs = (8, 4)


class TestVbLora(MethodContract):
    method = "vblora"
    settings = {"vector_length": 4, "num_vectors": 16}
    learning_rate = 5e-2
    starts_as_base = False  # the bank and the choices start at small random values, as in the paper


class TestUniLora(MethodContract):
    method = "unilora"
    learning_rate = 3e-2
    starts_as_base = False  # the vector starts at small random values: at zero it would have no gradient


class TestTinyLora(MethodContract):
    method = "tinylora"
    learning_rate = 5e-2


class TestLily(MethodContract):
    method = "lily"
    kinds = ("bert", "roberta")  # of decoders it would see the future
    settings = {"rank": 4, "stride_A": 2}
