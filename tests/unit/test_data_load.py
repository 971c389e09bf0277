"""What `load_data` makes of good data: formats, columns, tasks, labels, samples and fingerprints."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pytest

from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data import sources
from autopeft.evaluate.data.load import DataSet, load_data

ROWS = [{"text": f'a "quoted", text {i} é', "text_pair": f"second\n{i}", "label": f"class{i % 3}"} for i in range(12)]


def jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def delimited(delimiter: str) -> Callable[[Path, list[dict[str, object]]], None]:
    def write(path: Path, rows: list[dict[str, object]]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)

    return write


FORMATS: dict[str, Callable[[Path, list[dict[str, object]]], None]] = {
    "jsonl": jsonl,
    "json": jsonl,
    "csv": delimited(","),
    "tsv": delimited("\t"),
    "parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path),
}


def loaded(
    folder: Path, train: list[dict[str, object]], suffix: str = "jsonl", seed: int = 0, **spec: object
) -> DataSet:
    """Train and validate on the same rows, which keeps the labels of both alike."""
    path = folder / f"rows.{suffix}"
    FORMATS[suffix](path, train)
    return load_data(DataSpec(train=str(path), validation=str(path), **spec), seed)  # type: ignore[arg-type]


def labelled(labels: list[object]) -> list[dict[str, object]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    data = loaded(tmp_path, ROWS, suffix)
    train = data.splits["train"]
    assert train.texts == tuple(row["text"] for row in ROWS)
    assert data.task.pairs
    assert train.pairs == tuple(row["text_pair"] for row in ROWS)
    assert train.labels == (0, 1, 2) * 4
    assert data.task.labels == ("class0", "class1", "class2")
    assert data.fingerprint == loaded(tmp_path, ROWS, "jsonl").fingerprint


def test_tsv_with_single_quotation_marks_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"open\ta\n5" disk\tb\nplain\ta\nend"\tb\n')
    data = load_data(DataSpec(train=str(tmp_path / "a.tsv"), validation=str(tmp_path / "a.tsv")), 0)
    assert data.splits["train"].texts == ('"open', '5" disk', "plain", 'end"')


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\r\none,a\r\ntwo,b\r\nthree,a\r\nfour,b\r\n")
    data = load_data(DataSpec(train=str(tmp_path / "a.csv"), validation=str(tmp_path / "a.csv")), 0)
    assert data.splits["train"].texts == ("one", "two", "three", "four")
    assert data.task.labels == ("a", "b")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"premise": row["text"], "hypothesis": row["text_pair"], "gold": row["label"]} for row in ROWS]
    data = loaded(tmp_path, rows, text="premise", text_pair="hypothesis", label="gold")
    assert data.fingerprint == loaded(tmp_path, ROWS).fingerprint


def test_without_a_second_column_there_are_no_pairs(tmp_path: Path) -> None:
    assert loaded(tmp_path, labelled(["a", "b"] * 3)).splits["train"].pairs is None


@pytest.mark.parametrize("order", [("validation", "test"), ("dev", "test"), ("val", "test")])
def test_a_folder_of_files_is_read_by_their_names(order: tuple[str, str], tmp_path: Path) -> None:
    for name, rows in zip(("train", *order), (ROWS, ROWS[:6], ROWS[6:9]), strict=True):
        jsonl(tmp_path / f"{name}.jsonl", rows)  # type: ignore[arg-type]
    data = load_data(DataSpec(source=str(tmp_path)), 0)
    assert data.task.rows == {"train": 12, "validation": 6, "test": 3}


def test_a_saved_data_set_brings_the_names_of_its_classes(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zero", "no"])})
    part = datasets.Dataset.from_list(labelled([0, 1, 1, 0, 1]), features=features)
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(str(tmp_path / "saved"))
    data = load_data(DataSpec(source=str(tmp_path / "saved")), 0)
    assert data.task.labels == ("zero", "no")
    assert data.splits["train"].labels == (0, 1, 1, 0, 1)


def test_a_hub_data_set_whose_test_labels_are_hidden_has_no_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(source: str, subset: str | None) -> datasets.DatasetDict:
        asked.append((source, subset))
        part = datasets.Dataset.from_list(labelled([0, 1, 1, 0, 1]))
        hidden = datasets.Dataset.from_list(labelled([-1, -1]))
        return datasets.DatasetDict({"train": part, "validation_matched": part, "test": hidden})

    monkeypatch.setattr(sources, "_hub_answers", lambda source: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_data(DataSpec(source="owner/set", subset="mnli", validation="validation_matched"), 0)
    assert asked == [("owner/set", "mnli")]
    assert data.task.rows == {"train": 5, "validation": 5}
    assert any("hidden" in notice for notice in data.notices)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b", "a"], ("a", "b")),
        (["answer10", "answer2", "answer1", "answer2"], ("answer1", "answer2", "answer10")),
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        ([1, 0, 10, 2], ("0", "1", "2", "10")),
        ([1.0, 0.0, 1.0, 0.0], ("0", "1")),
        ([True, False, True, True], ("false", "true")),
        ([0, 1, 2, 1.5], ("0", "1", "1.5", "2")),
        (["1.5", "high", "low", "low"], ("1.5", "high", "low")),
    ],
)
def test_classes_are_in_natural_order(labels: list[object], names: tuple[str, ...], tmp_path: Path) -> None:
    task = loaded(tmp_path, labelled(labels)).task
    assert (task.kind, task.labels, task.metric) == ("classification", names, "accuracy")
    assert task.metrics == ("accuracy", "f1", "matthews")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("labels", [[0.5, 2.25, 5.0, 3.0], [3.75, 1.1, 0.0, 1.1]])
def test_fractional_numbers_are_scores(labels: list[object], suffix: str, tmp_path: Path) -> None:
    data = loaded(tmp_path, labelled(labels), suffix)
    assert (data.task.kind, data.task.labels, data.task.metric) == ("regression", (), "spearman")
    assert data.task.metrics == ("spearman", "pearson")
    assert data.task.majority_share is None
    assert data.splits["train"].labels == tuple(labels)
    assert any("regression" in notice for notice in data.notices)


def test_many_fractions_among_whole_numbers_are_scores(tmp_path: Path) -> None:
    assert loaded(tmp_path, labelled([*range(5), *(i + 0.5 for i in range(21))])).task.kind == "regression"


def test_the_task_can_be_said(tmp_path: Path) -> None:
    assert loaded(tmp_path, labelled([0, 1, 2, 3]), task="regression").splits["train"].labels == (0.0, 1.0, 2.0, 3.0)
    assert loaded(tmp_path, labelled([0.5, 1.5, 0.5, 1.5]), task="classification").task.labels == ("0.5", "1.5")


def test_the_metric_can_be_said(tmp_path: Path) -> None:
    assert loaded(tmp_path, ROWS, metric="matthews").task.metric == "matthews"


def test_the_majority_share_is_that_of_validation(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", labelled(["x"] * 9 + ["y"]))
    jsonl(tmp_path / "b.jsonl", [{"text": f"other {i}", "label": "y" if i else "x"} for i in range(4)])
    data = load_data(DataSpec(train=str(tmp_path / "a.jsonl"), validation=str(tmp_path / "b.jsonl")), 0)
    assert data.task.majority_share == 0.75
    assert data.notices == ()


def test_a_sample_of_training_rows_is_drawn_from_the_seed(tmp_path: Path) -> None:
    rows = labelled(["a", "b"] * 50)
    one, same, other = (loaded(tmp_path, rows, seed=seed, max_train_rows=30) for seed in (1, 1, 2))
    assert len(one.splits["train"]) == one.task.rows["train"] == 30
    assert one.task.rows["validation"] == 100
    assert one.splits["train"] == same.splits["train"]
    assert one.splits["train"] != other.splits["train"]
    assert len({one.fingerprint, other.fingerprint, loaded(tmp_path, rows).fingerprint}) == 3
    kept = [int(text.split()[1]) for text in one.splits["train"].texts]
    assert kept == sorted(set(kept))
    assert [one.task.labels[int(label)] for label in one.splits["train"].labels] == ["ab"[row % 2] for row in kept]


def test_a_sample_above_the_number_of_rows_keeps_them_all(tmp_path: Path) -> None:
    assert loaded(tmp_path, ROWS, max_train_rows=1000).fingerprint == loaded(tmp_path, ROWS).fingerprint


def test_the_fingerprint_tells_every_change_of_a_row(tmp_path: Path) -> None:
    rows = labelled(["a", "b", "a", "b"])
    changes = [
        rows,
        rows[::-1],
        [*rows[:3], {"text": "text 3!", "label": "b"}],
        [*rows[:3], {"text": "text 3", "label": "a"}],
        [{**row, "text_pair": ""} for row in rows],
    ]
    prints = [loaded(tmp_path, change).fingerprint for change in changes]
    assert len(set(prints)) == len(changes)
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in prints)


def test_rows_that_stand_in_training_too_are_counted_in_one_notice(tmp_path: Path) -> None:
    train = labelled(["a", "b"] * 5)
    jsonl(tmp_path / "train.jsonl", train)
    jsonl(tmp_path / "validation.jsonl", [*train[:3], {"text": "new", "label": "a"}])
    jsonl(tmp_path / "test.jsonl", [*train[:1], {"text": "newer", "label": "a"}])
    notices = load_data(DataSpec(source=str(tmp_path)), 0).notices
    assert len(notices) == 1
    assert "3 of 4 validation rows and 1 of 2 test rows" in notices[0]


def test_validation_may_be_a_seeded_sample_too(tmp_path):
    whole, one, same, other = (
        loaded(tmp_path, ROWS, seed=seed, **limits)
        for seed, limits in [(1, {}), *((seed, {"max_validation_rows": 4}) for seed in (1, 1, 2))]
    )
    assert one.splits["validation"].texts == same.splits["validation"].texts
    assert one.splits["validation"].texts != other.splits["validation"].texts
    assert set(one.splits["validation"].texts) <= set(whole.splits["validation"].texts)
    assert len(one.splits["validation"].texts) == one.task.rows["validation"] == 4
    assert one.splits["train"].texts == whole.splits["train"].texts
