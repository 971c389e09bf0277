"""Every mistake in a user's data is named with its place, what is allowed and what to do, all at once."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data import sources
from autopeft.evaluate.data.load import load_data
from autopeft.evaluate.data.mistakes import SHOWN_PER_KIND

GOOD = [{"text": f"sentence number {i}", "label": "good" if i % 2 else "bad"} for i in range(8)]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def good(tmp_path: Path) -> str:
    return write(tmp_path / "good.jsonl", GOOD)


def problems(**spec: object) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        load_data(DataSpec(**spec), seed=0)  # type: ignore[arg-type]
    return list(caught.value.problems)


def only(**spec: object) -> Problem:
    found = problems(**spec)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def test_a_missing_file_is_named_with_the_nearest_one(good: str, tmp_path: Path) -> None:
    path = str(tmp_path / "god.jsonl")
    found = only(train=path, validation=good)
    assert found.where == path
    assert "no such file" in found.found
    assert "data.train" in found.next_step
    assert "good.jsonl" in found.next_step


def test_a_missing_folder_of_a_file_is_said(good: str, tmp_path: Path) -> None:
    assert "no folder" in only(train=str(tmp_path / "nowhere" / "a.jsonl"), validation=good).next_step


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "empty.tsv", "empty.parquet"])
def test_an_empty_file_is_said_to_be_empty(name: str, good: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    found = only(train=str(tmp_path / name), validation=good)
    assert found.where.endswith(name)
    assert "empty" in found.found
    assert found.next_step


def test_a_file_with_a_header_alone_holds_no_rows(good: str, tmp_path: Path) -> None:
    (tmp_path / "head.csv").write_text("text,label\n")
    assert "no rows" in only(train=str(tmp_path / "head.csv"), validation=good).found


def test_a_broken_json_line_is_named_by_its_number(good: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n\n{"text": "b", "label": \n{"text": "c", "label": "y"}\n')
    found = only(train=str(path), validation=good)
    assert found.where == f"{path}:3"
    assert "not JSON" in found.found
    assert "object" in found.allowed
    assert "one JSON object per line" in found.next_step


def test_a_json_line_that_is_no_object_is_named_by_its_number(good: str, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n["b", "y"]\n')
    found = only(train=str(path), validation=good)
    assert found.where == f"{path}:2"
    assert "a list" in found.found
    assert found.allowed.startswith("one JSON object")


def test_a_json_array_over_many_lines_is_one_mistake(good: str, tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text(json.dumps(GOOD, indent=1))
    assert only(train=str(path), validation=good).where == f"{path}:1"


def test_a_missing_column_names_those_found_and_guesses(good: str, tmp_path: Path) -> None:
    rows = [{"sentence": row["text"], "lable": row["label"]} for row in GOOD]
    text, label = problems(train=write(tmp_path / "a.jsonl", rows), validation=good)
    assert "no column 'text'" in text.found
    assert text.allowed == label.allowed == "sentence, lable"
    assert "Did you mean 'sentence'?" in text.next_step
    assert "data.text" in text.next_step
    assert "Did you mean 'lable'?" in label.next_step


def test_an_asked_for_second_sentence_must_be_there(good: str) -> None:
    for found in problems(train=good, validation=good, text_pair="hypothesis"):  # once per split
        assert "no column 'hypothesis'" in found.found
        assert "data.text_pair" in found.next_step


def test_second_sentences_in_one_split_only_are_a_mistake(good: str, tmp_path: Path) -> None:
    paired = write(tmp_path / "pair.jsonl", [{**row, "text_pair": "and more"} for row in GOOD])
    found = only(train=paired, validation=good)
    assert found.where == good
    assert "text_pair" in found.found


@pytest.mark.parametrize("value", [None, "", "  \t"])
def test_an_empty_text_is_named_by_its_line(value: object, good: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD, {"text": value, "label": "bad"}])
    found = only(train=path, validation=good)
    assert found.where == f"{path}:9"
    assert "'text' is empty" in found.found
    assert "take the row out" in found.next_step


def test_a_text_that_is_a_list_is_named_by_its_line(good: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD, {"text": ["a"], "label": "bad"}])
    assert "a list" in only(train=path, validation=good).found


@pytest.mark.parametrize(("row", "kind"), [({"label": None}, "empty"), ({}, "empty"), ({"label": float("nan")}, "NaN")])
def test_a_missing_label_is_named_by_its_line(row: dict[str, object], kind: str, good: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD[:4], {"text": "unlabelled", **row}, *GOOD[4:]])
    found = only(train=path, validation=good)
    assert found.where == f"{path}:5"
    assert kind in found.found


def test_one_class_only_is_a_mistake(good: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**row, "label": "good"} for row in GOOD])
    found = only(train=path, validation=good)
    assert found.where == path
    assert "every label is 'good'" in found.found
    assert "two classes" in found.allowed


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_lacks_is_named_by_its_line(split: str, good: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [*GOOD, {"text": "a", "label": "godo"}])
    found = only(**{"train": good, "validation": good, split: other})
    assert found.where == f"{other}:9"
    assert "no training row has the label 'godo'" in found.found
    assert found.allowed == "bad, good"
    assert "Did you mean 'good'?" in found.next_step


def test_an_unknown_suffix_lists_the_known_ones(good: str, tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    found = only(train=str(tmp_path / "a.xlsx"), validation=good)
    assert "'.xlsx'" in found.found
    assert ".parquet" in found.allowed


def test_text_that_is_not_utf8_is_named_by_its_line(good: str, tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("text,label\nplain,a\ncafé,b\n".encode("latin-1"))
    found = only(train=str(path), validation=good)
    assert found.where == f"{path}:3"
    assert "not UTF-8" in found.found
    assert "iconv" in found.next_step


def test_a_parquet_file_that_is_none_is_said(good: str, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"text,label\n")
    assert "Parquet" in only(train=str(tmp_path / "a.parquet"), validation=good).found


def test_a_csv_row_with_too_many_fields_is_named_by_its_line(good: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",a\none, two,b\n')
    found = only(train=str(path), validation=good)
    assert found.where == f"{path}:4"
    assert "3 fields" in found.found
    assert found.allowed == "2 fields"


def test_unbalanced_quotation_marks_are_said(good: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"never closed,a\nb,c\n')
    assert "quotation marks" in only(train=str(tmp_path / "a.csv"), validation=good).found


@pytest.mark.parametrize(
    ("label", "words"), [("warm", "is not a number"), ("nan", "is not a number"), ("inf", "not a")]
)
def test_a_score_that_is_no_number_is_named_by_its_line(label: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{i}.5\n" for i in range(6)) + f"odd,{label}\n")
    found = problems(train=str(path), validation=str(path), task="regression")[0]
    assert found.where == f"{path}:8"
    assert words in found.found
    assert "finite number" in found.allowed


def test_too_few_rows_are_said_with_the_least(good: str, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", GOOD[:2])
    train, validation = problems(train=few, validation=few)
    assert "too few" in train.found
    assert train.allowed == "at least 4 rows"
    assert validation.allowed == "at least 3 rows"


def test_a_metric_that_does_not_fit_the_task_lists_those_that_do(good: str) -> None:
    found = only(train=good, validation=good, metric="spearman")
    assert found.where == "data.metric"
    assert found.allowed == "accuracy, f1, matthews"


def test_mistakes_of_all_files_are_shown_together(good: str, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [*GOOD, {"text": "", "label": "bad"}, {"text": "a", "label": "ugly"}])
    found = problems(train=good, validation=bad, test=str(tmp_path / "none.csv"), metric="spearman")
    assert {one.where for one in found} == {f"{bad}:9", f"{bad}:10", str(tmp_path / "none.csv"), "data.metric"}


def test_many_mistakes_of_one_kind_are_counted(good: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*GOOD, *({"text": "", "label": "bad"} for _ in range(40))])
    found = problems(train=path, validation=good)
    assert len(found) == SHOWN_PER_KIND + 1
    assert f"{40 - SHOWN_PER_KIND} more rows" in found[-1].found


def test_a_folder_without_validation_says_which_splits_it_has(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "test.jsonl", GOOD)
    found = only(source=str(tmp_path))
    assert found.where == str(tmp_path)
    assert "no validation split" in found.found
    assert found.allowed == "test.jsonl, train.jsonl"
    assert "data.validation" in found.next_step


def test_two_files_for_one_split_are_a_mistake(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.json", "dev.jsonl"):
        write(tmp_path / name, GOOD)
    assert "could both be the train split" in only(source=str(tmp_path)).found


def test_a_split_name_that_is_not_there_is_guessed(tmp_path: Path) -> None:
    for name in ("train.jsonl", "dev.jsonl"):
        write(tmp_path / name, GOOD)
    found = only(source=str(tmp_path), validation="dve")
    assert found.where == "data.validation"
    assert "Did you mean 'dev'?" in found.next_step


def test_a_saved_data_set_without_splits_is_a_mistake(tmp_path: Path) -> None:
    datasets.Dataset.from_pandas(pd.DataFrame(GOOD)).save_to_disk(str(tmp_path / "saved"))
    assert "without splits" in only(source=str(tmp_path / "saved")).found


def test_a_broken_saved_data_set_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert "cannot be read" in only(source=str(tmp_path)).found


def test_a_source_that_is_no_folder_and_no_hub_name_is_a_mistake(tmp_path: Path) -> None:
    found = only(source=str(tmp_path / "nowhere"))
    assert found.where == "data.source"
    assert "no folder" in found.found
    assert "python-docs" in found.next_step


def test_a_file_as_source_is_a_mistake(good: str) -> None:
    assert "data.train" in only(source=good).next_step


def test_a_hub_that_does_not_answer_fails_at_once_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_hub_answers", lambda source: False)

    def waited(seconds: float) -> None:
        raise AssertionError(f"it waited {seconds} s for a hub that does not answer")

    monkeypatch.setattr("time.sleep", waited)
    found = only(source="no-such-owner/no-such-set")
    assert found.where == "data.source"
    assert "cannot be reached" in found.found
    assert "data.train and data.validation" in found.next_step
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_client_that_gets_no_answer_counts_as_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **named: object) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refused)
    assert not sources._hub_answers("owner/name")


def test_what_the_hub_says_of_a_data_set_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **named: object) -> None:
        raise ValueError("Config name is missing.\nPlease pick one")

    monkeypatch.setattr(sources, "_hub_answers", lambda source: True)
    monkeypatch.setattr(datasets, "load_dataset", missing)
    found = only(source="glue")
    assert "Config name is missing." in found.found
    assert "data.subset" in found.next_step
