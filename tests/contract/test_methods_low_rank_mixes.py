"""Low-rank and shared-vector methods in one model with LoRA and a second time with themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import Role
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.insertion import insert, removed_afterwards
from autopeft.evaluate.methods import METHODS
from tests.contract.method_runs import base_of, calibration_of, logits_of, train
from tests.contract.test_methods_low_rank_fit import MINE, classifier, insertion_of

ALONE = tuple(name for name in MINE if METHODS[name].facts.alone)


@pytest.mark.parametrize("name", [name for name in MINE if name not in ALONE])
def test_it_trains_beside_lora_and_itself_and_reloads(name: str, tmp_path: Path) -> None:
    base = classifier("bert")
    mixed = (
        Insertion(
            method="lora", layers=(0, 2), modules=(Role.FFN_IN.value,), settings=dict(METHODS["lora"].facts.defaults)
        ),
        insertion_of(name, base, (Role.QUERY.value, Role.VALUE.value)),
        insertion_of(name, base, (Role.QUERY.value,), (2,)),
    )
    candidate = Candidate(insertions=mixed, learning_rate=1e-3)
    with removed_afterwards(base.untouched):
        calibration = calibration_of(base.kind)
        inserted = insert(base.untouched, candidate, base.layout, 3, steps=4, calibration=calibration)
        found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
        assert found == sum(METHODS[one.method].trainable(one, base.layout) for one in mixed)
        before = [part.detach().clone() for part in inserted.trainable()]
        train(base, inserted, 4, 3e-2)
        assert any((part != old).any() for part, old in zip(inserted.trainable(), before, strict=True))
        live = logits_of(inserted.model, base.kind)
        save_adapter(inserted, tmp_path / "adapter")
    assert base.untouched.differences() == []
    reloaded = logits_of(load_adapter(base_of(base.kind).model, tmp_path / "adapter"), base.kind)
    assert (reloaded - live).abs().max() <= 1e-4 * live.abs().max()
