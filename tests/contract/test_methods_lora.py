"""LoRA and its relatives under the contract of all methods."""

from tests.contract.method_contract import MethodContract, NewProcessContract


class TestLora(MethodContract):
    method = "lora"


class TestRslora(MethodContract):
    method = "rslora"


class TestDora(MethodContract):
    method = "dora"


class TestPissa(NewProcessContract):
    method = "pissa"
    kinds = ("bert", "llama", "gpt2")


class TestOlora(MethodContract):
    method = "olora"


class TestMica(MethodContract):
    method = "mica"


class TestEva(MethodContract):
    method = "eva"


class TestCorda(MethodContract):
    method = "corda"
    kinds = ("bert", "llama", "gpt2")


class TestLoraGa(MethodContract):
    method = "lora-ga"
    kinds = ("bert", "llama", "gpt2")
    settings = {"rank": 4}


class TestLoraPlus(MethodContract):
    method = "lora-plus"


class TestLoraFa(MethodContract):
    method = "lora-fa"


class TestKasa(MethodContract):
    method = "kasa"
    settings = {"rank": 4}
    starts_as_base = False  # it drops the smallest singular values of the weights (eq. 4)


class TestBdLora(MethodContract):
    method = "bd-lora"


class TestVelora(MethodContract):
    method = "velora"
    settings = {"num_groups": 4}


class TestMonteclora(MethodContract):
    method = "monteclora"


class TestAdalora(NewProcessContract):
    method = "adalora"
    settings = {"rank": 6}
    learning_rate = 5e-2  # three factors start at 0 or 0.02, so that the first steps move little
