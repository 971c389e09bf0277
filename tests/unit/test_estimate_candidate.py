"""`autopeft estimate --candidate` and `--space`: what a search would train, before it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autopeft.app.candidate_file import read_candidate
from autopeft.app.estimating import Step, estimate_candidate, estimate_space
from autopeft.cli.tables import configuration_text
from autopeft.domain.candidate import Candidate
from autopeft.domain.devices import devices_of, limit_of
from autopeft.domain.errors import UserError
from autopeft.domain.estimate import Estimate, SpaceEstimate
from autopeft.domain.layout import TaskName
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.inspection import ANY_TEXT
from autopeft.evaluate.memory.forecast import forecast_at, open_forecast
from tests.unit.estimate_models import HIDDEN, LAYERS, VALUES, model_folder, space_file
from tests.unit.evaluate_models import save_model, write_data

TEXT = Step(rows=2, tokens=24, task=TaskName.CAUSAL_LM)


@pytest.fixture
def spec(tmp_path: Path) -> SearchSpec:
    """A search on a model of which nothing but a config is here."""
    return SearchSpec.model_validate(
        {
            "model": {"source": str(model_folder(tmp_path / "model")), "dtype": "bfloat16"},
            "space": space_file(tmp_path),
        }
    )


def written(folder: Path, **said: Any) -> Path:
    path = folder / "candidate.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    return path


def of(spec: SearchSpec, path: Path, step: Step = TEXT) -> Estimate:
    return estimate_candidate(spec, path, step, configuration_text)


def lora(rank: int = 4, **more: Any) -> dict[str, Any]:
    return {"insertions": [{"method": "lora", "settings": {"rank": rank}, **more}]}


def test_what_is_left_out_is_filled_in(spec: SearchSpec, tmp_path: Path) -> None:
    layout = forecast_at(spec, ANY_TEXT, 2, 24).layout
    found = read_candidate(written(tmp_path, **lora()), layout)
    (one,) = found.insertions
    assert one.layers == tuple(range(LAYERS))
    assert one.modules == ("attention.query", "attention.value")
    assert one.settings["rank"] == 4
    assert {"alpha_ratio", "dropout"} <= set(one.settings)
    again = read_candidate(written(tmp_path, candidate=found.model_dump(mode="json")), layout)
    assert again == found


def test_an_exported_candidate_is_predicted_as_its_search_predicts_it(spec: SearchSpec, tmp_path: Path) -> None:
    forecast = forecast_at(spec, ANY_TEXT, 2, 24)
    path = written(tmp_path, **lora(8, layers=[1, 2], modules=["attention.query", "attention.value"]))
    found = of(spec, path)
    predicted = forecast.predict(read_candidate(path, forecast.layout))
    assert predicted is not None
    assert (
        found.train_peak_bytes == predicted.train_peak_bytes + found.workspace_bytes or found.training.target == "cpu"
    )
    assert found.trainable_parameters == 2 * 8 * (HIDDEN + HIDDEN + HIDDEN + VALUES)
    assert found.trainable_parameters == predicted.trainable_parameters
    assert found.layer_activation_bytes[0] < found.layer_activation_bytes[2]


def test_no_gpu_reserves_nothing_and_one_does(spec: SearchSpec, tmp_path: Path) -> None:
    path = written(tmp_path, **lora())
    on_gpu = of(spec, path, Step(rows=2, tokens=24, task=TaskName.CAUSAL_LM, devices=devices_of("l40s")))
    assert on_gpu.training.target == "cuda"
    assert on_gpu.train_peak_reserved_bytes is not None
    assert on_gpu.train_peak_reserved_bytes >= on_gpu.train_peak_bytes
    assert on_gpu.workspace_bytes > 0
    assert on_gpu.devices[0].verdict == "fits"


def test_checkpointed_blocks_save_less(spec: SearchSpec, tmp_path: Path) -> None:
    path = written(tmp_path, **lora())
    training = spec.training.model_copy(update={"gradient_checkpointing": True})
    plain, saving = of(spec, path), of(spec.model_copy(update={"training": training}), path)
    assert saving.training.gradient_checkpointing
    assert sum(saving.layer_activation_bytes) < sum(plain.layer_activation_bytes) / 3


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"insertions": [{"method": "lroa"}]}, "nothing is called 'lroa'"),
        ({"insertions": {"method": "lora"}}, "no candidate"),
        (lora(layers=[7]), "7"),
        (lora(modules=["nothing"]), "nothing"),
        (lora(layers="all"), r"insertions\.0\.layers: 'all' is no list.*numbers from 0 to 2"),
        (lora(modules="attention.query"), r"insertions\.0\.modules: 'attention.query' is no list"),
        (lora(rank="many"), "rank"),
        ({**lora(), "policy": {"name": "nobody"}}, "nobody"),
        ({**lora(), "pruning": {"criterion": "nobody"}}, "nobody"),
        ({**lora(), "learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_what_is_wrong_with_a_candidate_is_named(
    spec: SearchSpec, tmp_path: Path, said: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        of(spec, written(tmp_path, **said))


@pytest.mark.parametrize(("text", "says"), [("- a\n- b", "no keys"), ("a: [", "not YAML"), ("", "no keys")])
def test_a_file_that_holds_no_candidate_is_refused(spec: SearchSpec, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "candidate.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        of(spec, path)
    with pytest.raises(UserError, match="cannot be read"):
        of(spec, tmp_path / "gone.yaml")


def test_a_space_is_sampled_by_its_seed_and_its_ends_are_candidates(spec: SearchSpec) -> None:
    seen: list[tuple[int, int]] = []

    def of_space(seed: int, count: int, *limits: str) -> SpaceEstimate:
        devices = tuple(limit_of(limit, "--max-memory") for limit in limits)
        step = Step(rows=2, tokens=24, task=TaskName.CAUSAL_LM, devices=devices)
        seeded = spec.model_copy(update={"seed": seed})
        return estimate_space(seeded, step, count, configuration_text, lambda done, total: seen.append((done, total)))

    found = of_space(0, 4)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.candidates == sum(one.count for one in found.histogram) == 4
    assert found.smallest is not None
    assert found.largest is not None
    assert found.smallest.train_peak_bytes == found.quantiles["0"] < found.quantiles["1"]
    assert found.largest.train_peak_bytes == found.quantiles["1"]
    between = (found.quantiles["0"] + found.quantiles["1"]) / 2048
    again = of_space(0, 4, "1GiB", f"{between:.3f}KiB", "200KiB")
    assert (again.quantiles, again.smallest, again.largest) == (found.quantiles, found.smallest, found.largest)
    all_of_them, some, none = (one.share for one in again.shares)
    assert (all_of_them, none) == (1.0, 0.0)
    assert 0 < some < 1
    assert of_space(1, 2).smallest != of_space(0, 2).smallest


def test_a_space_has_no_largest_batch(spec: SearchSpec) -> None:
    with pytest.raises(UserError, match="for one configuration"):
        estimate_space(spec, Step(largest=True, devices=devices_of("l40s")), 12, configuration_text)


def test_rows_decide_batch_and_length_as_in_the_search(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    data = write_data(tmp_path / "data")
    spec = SearchSpec.model_validate({"model": str(folder), "data": data, "training": {"batch_size": 8, "epochs": 1}})
    path = written(tmp_path, **lora(2))
    found = of(spec, path, Step(reads_data=True))
    setup = open_forecast(spec).setup
    assert (found.training.batch, found.training.seq) == (setup.rows, setup.tokens)
    fewer = of(spec, path, Step(rows=2, reads_data=True))
    assert (fewer.training.batch, fewer.training.seq) == (2, setup.tokens)
    assert fewer.train_peak_bytes < found.train_peak_bytes


def test_a_config_alone_needs_a_length(spec: SearchSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--seq.*Say --seq"):
        of(spec, written(tmp_path, **lora()), Step(rows=2, reads_data=True))


def test_a_candidate_needs_nothing_but_a_valid_shape() -> None:
    assert configuration_text(Candidate(insertions=(), learning_rate=1e-3)).startswith("head only")
