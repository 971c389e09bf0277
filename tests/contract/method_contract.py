"""What every PEFT method promises. A test class that inherits `MethodContract` and names one checks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.insertion import removed_afterwards
from autopeft.evaluate.methods import METHODS, PeftMethod
from tests.contract.method_runs import (
    DECODERS,
    Base,
    base_of,
    bert_base_layout,
    inserted_in,
    logits_of,
    put_in,
    reloaded_elsewhere,
    task_loss,
    train,
    trained_tensors,
)
from tests.unit.model_state import assert_same, state_of


class MethodContract:
    """Inherit it as `class TestLora(MethodContract): method = "lora"`."""

    method: str
    """Its name in `METHODS`."""
    kinds: tuple[str, ...] = ("bert", "llama")
    """Model types of `CONFIGS` that it runs on: encoders classify, decoders model language."""
    settings: Mapping[str, Setting] = {}
    """Instead of the method's defaults, where these are too large for models 16 wide."""
    knobs: tuple[Setting, ...] = ()
    """Two values of the knob to count parameters with; the first two of its ladder where empty."""
    modules: Mapping[str, tuple[str, ...]] = {}
    """Roles by model type; `default_modules` where a type is missing."""
    layer_choices: tuple[tuple[int, ...], ...] = ((0, 1, 2), (0, 2))
    """Of three layers; a method that takes no choice gets the first alone."""
    learning_rate: float = 1e-2
    steps: int = 20
    falls: float = 0.05
    """By so much of itself the loss must fall; without training it would not change at all."""
    starts_as_base: bool = True
    """Whether the untrained method leaves the function of the model as it is; where False, say why beside it."""
    tolerance: float = 1e-4
    """Of merged and reloaded logits, relative to the largest one."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", self.kinds)

    # What a test class may override where a few values do not say it.

    def insertion(
        self, layout: ModelLayout, kind: str, layers: tuple[int, ...] | None = None, **settings: Any
    ) -> Insertion:
        """The insertion to test, in all layers where nothing else is said."""
        method = METHODS[self.method]
        modules = self.modules.get(kind, method.default_modules(layout)) if method.facts.takes_modules else ()
        found = Insertion(
            method=self.method,
            layers=tuple(range(len(layout.layers))) if layers is None else layers,
            modules=tuple(sorted(modules)),
            settings={**method.facts.defaults, **self.settings, **settings},
        )
        assert method.problems(found, layout) == []
        return found

    def choices(self, base: Base) -> list[Insertion]:
        """Insertions that differ in the knob and in the layers."""
        facts = METHODS[self.method].facts
        layers = self.layer_choices if facts.takes_layers else self.layer_choices[:1]
        knobs = [{}] if facts.knob is None else [{facts.knob: value} for value in self.knobs or facts.ladder[:2]]
        return [self.insertion(base.layout, base.kind, chosen, **knob) for chosen in layers for knob in knobs]

    # What is promised.

    def test_the_registry_has_it_under_its_name(self) -> None:
        method = METHODS[self.method]
        facts = method.facts
        assert facts.name == method.name == self.method
        assert facts.defaults.keys() == facts.settings.keys()
        assert facts.knob is None or (facts.knob in facts.settings and len(facts.ladder) >= 2)
        for kind in self.kinds:
            task = TaskName.CAUSAL_LM if kind in DECODERS else TaskName.SEQUENCE_CLASSIFICATION
            assert task in facts.tasks

    def test_its_closed_form_counts_what_is_trained(self, kind: str) -> None:
        base, counts = base_of(kind), []
        method = METHODS[self.method]
        for insertion in self.choices(base):
            with inserted_in(base, insertion) as inserted:
                found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
                assert 0 < found <= method.trainable(insertion, base.layout), insertion
                assert found == method.trainable(insertion, base.layout) or not method.exact_count, insertion
                counts.append(found)
        if method.facts.knob is not None:
            assert len(set(counts)) > 1, "the knob decides nothing"

    def test_its_closed_form_holds_for_a_model_without_weights(self) -> None:
        if not any(kind not in DECODERS for kind in self.kinds):
            pytest.skip("it is for decoders only")
        method, layout = METHODS[self.method], bert_base_layout()
        values = [{}] if method.facts.knob is None else [{method.facts.knob: value} for value in method.facts.ladder]
        defaults, every = dict(method.facts.defaults), tuple(range(len(layout.layers)))
        roles = method.default_modules(layout)
        tried = [
            Insertion(method=self.method, layers=every, modules=roles, settings={**defaults, **value})
            for value in values
        ]
        counts = [method.trainable(one, layout) for one in tried if not method.problems(one, layout)]
        assert counts, "it fits no BERT of the usual size"
        assert min(counts) > 0
        assert counts == sorted(counts), "the ladder does not go from few to many"

    def test_untrained_it_leaves_the_function_as_it_is(self, kind: str) -> None:
        if not self.starts_as_base:
            pytest.skip("its paper starts elsewhere")
        base = base_of(kind)
        before = logits_of(base.model, kind)
        with inserted_in(base, self.insertion(base.layout, kind)) as inserted:
            self.assert_close(logits_of(inserted.model, kind), before, 1e-5)

    def test_it_touches_only_what_it_trains_and_leaves_no_trace(self, kind: str) -> None:
        base = base_of(kind)
        logits, before = logits_of(base.model, kind), state_of(base.model)
        originals = {**dict(base.model.named_parameters()), **dict(base.model.named_buffers())}
        insertion = self.insertion(base.layout, kind)
        with removed_afterwards(base.untouched):
            inserted = put_in(base, insertion, steps=4)
            train(base, inserted, 4, self.learning_rate)
            assert base.untouched.differences(), "nothing was put in"
            trained = {id(part) for part in inserted.trainable()}
            overwritten = inserted.module_names if self.overwrites(insertion) else ()
            for name, tensor in originals.items():
                if id(tensor) in trained or any(name.startswith(f"{path}.") for path in overwritten):
                    continue
                known = before["tensors"].get(name, before["all_buffers"].get(name))
                assert torch.equal(tensor, known), f"{name} was changed"
        assert_same(before, state_of(base.model))
        assert base.untouched.differences() == []
        assert torch.equal(logits_of(base.model, kind), logits)

    def test_the_loss_falls_by_the_method_alone(self, kind: str) -> None:
        base = base_of(kind)
        with inserted_in(base, self.insertion(base.layout, kind), steps=self.steps) as inserted:
            first = task_loss(inserted.model, kind)
            train(base, inserted, self.steps, self.learning_rate)
            last = task_loss(inserted.model, kind)
        assert last < (1 - self.falls) * first, (first, last)

    def test_one_seed_gives_one_result(self, kind: str) -> None:
        results = []
        for seed in (3, 3):
            base = base_of(kind)
            with inserted_in(base, self.insertion(base.layout, kind), steps=3, seed=seed) as inserted:
                train(base, inserted, 3, self.learning_rate)
                results.append(trained_tensors(inserted))
        one, two = results
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name]), name

    def test_merged_it_predicts_the_same(self, kind: str) -> None:
        base = base_of(kind)
        with inserted_in(base, self.insertion(base.layout, kind), steps=4) as inserted:
            train(base, inserted, 4, self.learning_rate)
            if not METHODS[self.method].facts.merges:
                with pytest.raises(ValueError):
                    inserted.merged()
                return
            live = logits_of(inserted.model, kind)
            merged = inserted.merged()
            assert not any("lora" in name or "adapter" in name for name, _ in merged.named_parameters())
            self.assert_close(logits_of(merged, kind), live, self.tolerance)

    def test_saved_it_predicts_the_same_on_a_fresh_base(self, kind: str, tmp_path: Path) -> None:
        base = base_of(kind)
        untrained = logits_of(base.model, kind)
        with inserted_in(base, self.insertion(base.layout, kind), steps=4) as inserted:
            train(base, inserted, 4, self.learning_rate)
            live = logits_of(inserted.model, kind)
            size = save_adapter(inserted, tmp_path / "adapter")
        assert size == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
        assert not torch.allclose(live, untrained, atol=1e-3), "training changed nothing that could be lost"
        self.assert_close(
            logits_of(load_adapter(base_of(kind).model, tmp_path / "adapter"), kind), live, self.tolerance
        )
        if METHODS[self.method].facts.library == "peft":
            plain = PeftModel.from_pretrained(base_of(kind).model, str(tmp_path / "adapter"))
            self.assert_close(logits_of(plain, kind), live, self.tolerance)

    def overwrites(self, insertion: Insertion) -> bool:
        """Whether weights of the base are others while it is in."""
        method = METHODS[self.method]
        return isinstance(method, PeftMethod) and method.changes_base(insertion)

    @staticmethod
    def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
        """Largest difference relative to the largest logit."""
        difference = (found - expected).abs().max().item()
        assert difference <= tolerance * expected.abs().max().item(), difference


class NewProcessContract(MethodContract):
    """With a reload by plain peft in a new process; slow, so for one method of each family, on its first model."""

    @pytest.mark.slow
    def test_a_new_process_with_peft_alone_predicts_the_same(self, tmp_path: Path) -> None:
        kind = self.kinds[0]
        base = base_of(kind)
        with inserted_in(base, self.insertion(base.layout, kind), steps=4) as inserted:
            train(base, inserted, 4, self.learning_rate)
            live = logits_of(inserted.model, kind)
            save_adapter(inserted, tmp_path / "adapter")
        self.assert_close(reloaded_elsewhere(base, tmp_path / "adapter", tmp_path), live, self.tolerance)
