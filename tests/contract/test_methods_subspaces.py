"""Methods that work in subspaces of the frozen weight: what every method promises."""

from autopeft.evaluate.methods import METHODS
from tests.contract.method_contract import MethodContract
from tests.contract.method_runs import base_of, inserted_in, train


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


class TestAdamssAsa(MethodContract):
    method = "adamss-asa"
    settings = {"rank": 4, "asa_target_subspaces": 8}
    knobs = (4, 5)
    learning_rate = 6e-2

    def test_it_goes_on_with_the_wanted_clusters_from_half_of_the_steps_on(self) -> None:
        left = {}
        for steps in (2, 12, 24):
            base = base_of("bert")
            with inserted_in(base, self.insertion(base.layout, "bert"), steps=24) as inserted:
                train(base, inserted, steps, self.learning_rate)
                parts = [part for name, part in inserted.model.named_parameters() if "adamss_A" in name]
                left[steps] = sum(part.requires_grad for part in parts)
        assert left[2] == 5 * 6, "five clusters in query and value of three layers"
        assert left[12] == left[24]
        assert left[12] in (7, 8), "peft may leave one fewer"
        assert METHODS[self.method].facts.alone
