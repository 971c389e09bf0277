"""Methods that decide by data or in training what of a module is trained keep what every method promises."""

from __future__ import annotations

from tests.contract.method_contract import MethodContract, NewProcessContract
from tests.contract.method_runs import base_of, inserted_in, train


class TestIncreLora(MethodContract):
    method = "increlora"
    kinds = ("bert", "llama", "gpt2")
    settings = {"rank": 4}
    learning_rate = 5e-2  # as AdaLoRA's: three factors start at 0 or 0.02
    steps = 30

    def test_its_closed_form_counts_what_is_trained(self, kind: str) -> None:
        # When it has grown, and with the ranks that it then has: which modules grow is decided in training.
        base, counts = base_of(kind), []
        for insertion in self.choices(base):
            modules = {
                module.path: module
                for index in insertion.layers
                for module in base.layout.layers[index].modules
                if module.role in insertion.modules
            }
            with inserted_in(base, insertion, steps=6) as inserted:
                train(base, inserted, 6, self.learning_rate)
                found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
                (companion,) = inserted.companions
                ranks = companion.form()["ranks"]
                assert ranks.keys() == modules.keys()
                sides = {path: module.in_features + module.out_features for path, module in modules.items()}
                assert found == sum(rank * (sides[path] + 1) for path, rank in ranks.items())
                assert sum(ranks.values()) == insertion.settings["rank"] * len(modules)
                counts.append(found)
        assert len(set(counts)) > 1


class TestSptLora(MethodContract):
    method = "spt-lora"
    kinds = ("bert", "llama", "gpt2")
    settings = {"rank": 4}
    knobs = (0.2, 1.0)


class TestSptRanks(NewProcessContract):
    method = "spt-ranks"
    kinds = ("bert", "llama", "gpt2")
    settings = {"rank": 4}
    knobs = (0.2, 1.0)
