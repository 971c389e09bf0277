"""A candidate foretold on another model: layers by relative depth, modules by role, sizes as they are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from autopeft.app.spec_file import anchored, make_spec
from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.carrying import carried, carried_layers
from autopeft.domain.errors import UserError
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import PredictForSpec, SearchSpec, TrainingSpec
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.elsewhere import Elsewhere, open_elsewhere
from autopeft.evaluate.memory.forecast import Forecast
from autopeft.evaluate.memory.tracing import MetaModel
from tests.unit.evaluate_models import TASK, config_of
from tests.unit.memory_models import candidate, forecast_of, model_of, setup_of, tracked
from tests.unit.space_layouts import BERT, GPT2, LLAMA, layout

ROWS = TASK.model_copy(update={"rows": {"train": 8}})
TRAINING = TrainingSpec(steps=4)


def test_layers_keep_their_relative_depth() -> None:
    assert carried_layers((0, 5), 6, 6) == (0, 5)
    assert carried_layers((4, 5), 6, 12) == (8, 9, 10, 11)
    assert carried_layers((0,), 6, 28) == (0, 1, 2, 3, 4)
    assert carried_layers((3, 4, 5), 6, 28) == tuple(range(14, 28))
    assert carried_layers((10, 11), 12, 6) == (5,)
    assert carried_layers((), 6, 12) == ()


@pytest.mark.parametrize(("before", "after"), itertools.product(range(1, 14), repeat=2))
def test_no_chosen_layer_is_lost_and_all_stay_all(before: int, after: int) -> None:
    assert carried_layers(tuple(range(before)), before, after) == tuple(range(after))
    assert carried_layers((before - 1,), before, after)[-1] == after - 1
    for index in range(before):
        found = carried_layers((index,), before, after)
        assert found
        # The middles of what is taken lie as near to where the layer was as the coarser of the two models tells.
        assert all(abs((at + 0.5) / after - (index + 0.5) / before) <= 0.5 / min(before, after) + 1e-9 for at in found)


def insertion(*roles: str, rank: int = 8) -> Candidate:
    one = Insertion(method="lora", layers=(2, 3), modules=roles, settings={"rank": rank})
    return Candidate(insertions=(one,), learning_rate=1e-3)


def test_modules_go_by_role_and_sizes_stay() -> None:
    found = carried(insertion("attention.query", "ffn.out"), layout(BERT, 4), layout(LLAMA, 8))
    (one,) = found.insertions
    assert one.layers == (4, 5, 6, 7)
    assert one.modules == ("attention.query", "ffn.out")
    assert one.settings == {"rank": 8}
    assert found.learning_rate == 1e-3


def test_a_role_that_is_missing_there_is_named() -> None:
    with pytest.raises(UserError, match=r"no attention\.query to put lora in; allowed: attention\.qkv"):
        carried(insertion("attention.query"), layout(BERT, 4), layout(GPT2, 12))


@pytest.mark.parametrize("method", ["lora", "serial", "prefix"])
def test_what_is_foretold_there_is_what_a_real_training_there_takes(method: str) -> None:
    before, there = forecast_of("bert", layers=2).layout, forecast_of("bert", layers=4)
    elsewhere = Elsewhere(before, there)
    wanted = candidate(before, method, (1,))
    found = elsewhere.predict(wanted)
    assert found is not None, elsewhere.why_not(wanted)
    assert elsewhere.why_not(wanted) == ""
    peak, trainable = tracked("bert", candidate(there.layout, method, (2, 3)))
    assert found.train_peak_bytes == pytest.approx(peak, rel=0.01)
    assert found.trainable_parameters == trainable


def test_a_rank_that_is_too_large_there_has_no_number_and_a_reason() -> None:
    model, there = model_of("bert", 4, device="meta", hidden_size=64), forecast_of("bert", layers=4)
    before = inspect_layout(model)
    here = Forecast(MetaModel(model, before), setup_of(), seed=3, steps=4)
    elsewhere = Elsewhere(before, there)
    wide = candidate(before, "pissa", rank=32)
    assert here.predict(wide) is not None
    assert elsewhere.predict(wide) is None
    assert "32 is larger than the smaller side of" in elsewhere.why_not(wide)
    assert elsewhere.predict(candidate(before, "pissa", rank=8)) is not None


# Opening one by what a person says


def config_alone(folder: Path, kind: str = "llama", **changes: object) -> Path:
    folder.mkdir()
    config = config_of(kind, **changes).to_dict()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_config_alone_is_enough_and_says_how_the_step_goes(tmp_path: Path) -> None:
    folder = config_alone(tmp_path / "big", num_hidden_layers=6)
    before = forecast_of("llama", layers=3).layout
    asked = PredictForSpec(model=str(folder), seq=40, batch=2, dtype="bfloat16", device="l40s")
    elsewhere = open_elsewhere(asked, before, ROWS, TRAINING, 0)
    setup = elsewhere.setup
    assert (setup.rows, setup.tokens, setup.target, setup.lower) == (2, 40, "cuda", torch.bfloat16)
    found = elsewhere.predict(candidate(before, "lora", (2,)))
    assert found is not None
    on_cpu = open_elsewhere(asked.model_copy(update={"device": "cpu"}), before, ROWS, TRAINING, 0)
    assert (on_cpu.setup.target, on_cpu.setup.lower) == ("cpu", torch.bfloat16)
    longer = open_elsewhere(asked.model_copy(update={"seq": 60}), before, ROWS, TRAINING, 0)
    more = longer.predict(candidate(before, "lora", (2,)))
    assert more is not None
    assert more.activation_bytes > found.activation_bytes
    assert more.weights_bytes == found.weights_bytes
    whole = open_elsewhere(asked.model_copy(update={"dtype": "float32"}), before, ROWS, TRAINING, 0)
    in_full = whole.predict(candidate(before, "lora", (2,)))
    assert in_full is not None
    assert in_full.weights_bytes > 1.8 * found.weights_bytes


def test_a_language_model_gets_no_new_head(tmp_path: Path) -> None:
    folder = config_alone(tmp_path / "big")
    text = TaskInfo(kind="causal-lm", metric="validation_loss", metrics=("validation_loss",), rows={"train": 8})
    asked = PredictForSpec(model=str(folder), seq=16, batch=2)
    before = forecast_of("llama", layers=3).layout
    with_head = open_elsewhere(asked, before, ROWS, TRAINING, 0).predict(candidate(before, "lora", (1,)))
    writing = open_elsewhere(asked, before, text, TRAINING, 0).predict(candidate(before, "lora", (1,)))
    assert with_head is not None
    assert writing is not None
    assert with_head.trainable_parameters - writing.trainable_parameters == 2 * 16  # two classes, 16 wide


def test_mistakes_are_named_under_their_keys(tmp_path: Path) -> None:
    folder = config_alone(tmp_path / "big")
    before = forecast_of("llama", layers=3).layout
    too_long = PredictForSpec(model=str(folder), seq=65)
    with pytest.raises(UserError, match=r"predict_for\.seq: .* takes no rows of 65 tokens; allowed: 1 to 64"):
        open_elsewhere(too_long, before, ROWS, TRAINING, 0)
    nowhere = PredictForSpec(model=str(tmp_path / "none"), seq=8)
    with pytest.raises(UserError, match=r"predict_for\.model"):
        open_elsewhere(nowhere, before, ROWS, TRAINING, 0)


# In a spec


def test_a_line_and_a_mapping_say_the_same() -> None:
    line = SearchSpec.model_validate({"predict_for": "model=meta-llama/Llama-3.2-3B,seq=768,batch=4,dtype=bf16"})
    keys = {"model": "meta-llama/Llama-3.2-3B", "seq": 768, "batch": 4, "dtype": "bfloat16"}
    assert line == SearchSpec.model_validate({"predict_for": keys})
    assert line.predict_for is not None
    assert str(line.predict_for) == "meta-llama/Llama-3.2-3B (4 x 768 tokens, bfloat16, cuda)"


def test_it_belongs_to_what_a_search_is_and_older_specs_stay_what_they_were() -> None:
    plain = SearchSpec()
    assert plain.digest == SearchSpec.model_validate({"predict_for": None}).digest
    asked = [SearchSpec.model_validate({"predict_for": f"model=x,seq={seq}"}).digest for seq in (64, 128)]
    assert len({plain.digest, *asked}) == 3


def test_a_folder_is_found_beside_the_spec_and_remembered_as_a_whole_path(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    for said in ("model=big,seq=8", {"model": "big", "seq": 8}):
        spec = make_spec(anchored({"predict_for": said}, tmp_path))
        assert spec.predict_for is not None
        assert spec.predict_for.model == str(tmp_path / "big")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("seq=768", "predict_for.model: Field required"),
        ("model=x", "predict_for.seq: Field required"),
        ("model=x,seq=0", "predict_for.seq"),
        ("model=x,seq", "'seq' is not one KEY=VALUE"),
        ("model=x,seq=8,seq=9", "'seq=9' is not one KEY=VALUE"),
        ("model=x,seq=8,dtype=int3", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("model=x,seq=8,size=3", "batch, device, dtype, model, revision, seq"),
    ],
)
def test_what_cannot_be_read_is_named(line: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        make_spec({"predict_for": line})
    assert says in str(caught.value)
