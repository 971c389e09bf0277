"""The embedded data set: enough of every area, nothing given away, splits apart, always the same."""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from autopeft.domain.errors import UserError
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data import python_docs
from autopeft.evaluate.data.load import DataSet, load_data
from autopeft.evaluate.data.python_docs import AREAS, MASK, Sizes


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data(DataSpec(), seed=0)


def names_in(text: str) -> set[str]:
    return {piece.lower() for piece in python_docs._PIECE.findall(text)}


def test_there_are_at_least_eight_areas_with_plenty_of_each(data: DataSet) -> None:
    sizes = Sizes()
    assert 8 <= len(data.task.labels) <= 12
    assert set(data.splits) == {"train", "validation", "test"}
    for name, least in (("train", sizes.least_train), ("validation", 20), ("test", 20)):
        counts = Counter(data.splits[name].labels)
        assert len(counts) == len(data.task.labels)
        assert min(counts.values()) >= least
        assert max(counts.values()) <= getattr(sizes, name)
    assert data.task.majority_share is not None
    assert data.task.majority_share < 0.2


def test_no_text_names_a_module_or_an_area(data: DataSet) -> None:
    hidden = {
        piece.lower() for name in (*AREAS, *sum(AREAS.values(), ())) for piece in python_docs._PIECE.findall(name)
    }
    for split in data.splits.values():
        for text in split.texts:
            assert not names_in(text) & hidden, text


def test_names_inside_identifiers_are_masked_and_other_words_are_not() -> None:
    masked = python_docs._mask(
        "XMLReader and xml_parse of email.Message; the maildir, website", {"xml", "email", "mail"}
    )
    assert masked == f"{MASK}Reader and {MASK}_parse of {MASK}.Message; the maildir, website"


def test_most_texts_begin_with_the_name_of_what_they_are_about(data: DataSet) -> None:
    texts = data.splits["train"].texts
    assert sum(": " in text for text in texts) / len(texts) > 0.8
    assert "_" not in "".join(text.split(": ")[0] for text in texts if re.match(r"[a-z ]+: ", text))


def test_a_bag_of_words_learns_it_but_not_completely(data: DataSet) -> None:
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=20))
    model.fit(data.splits["train"].texts, data.splits["train"].labels)
    reached = model.score(data.splits["validation"].texts, data.splits["validation"].labels)
    assert data.task.majority_share is not None
    assert data.task.majority_share + 0.2 < reached < 0.95


def test_no_paragraph_and_no_docstring_is_in_two_splits() -> None:
    library = Path(python_docs.sysconfig.get_path("stdlib"))
    owner = {one.text: one.owner for one in python_docs._distinct(library, Sizes().shortest, Sizes().longest)}
    tables = python_docs.tables()
    owners = {name: {owner[str(text)] for text in table.columns["text"]} for name, table in tables.items()}
    texts = [str(text) for table in tables.values() for text in table.columns["text"]]
    assert len(texts) == len(set(texts))
    assert not owners["train"] & owners["validation"]
    assert not owners["train"] & owners["test"]
    assert not owners["validation"] & owners["test"]


def test_paragraphs_keep_the_asked_for_lengths_before_masking() -> None:
    tables = python_docs.tables(Sizes(train=60, validation=20, test=20, shortest=80, longest=160))
    for table in tables.values():
        # The name stands in front, and a mask may be longer or shorter than what it hides.
        assert all(40 < len(str(text)) < 320 for text in table.columns["text"])
    assert max(Counter(tables["train"].columns["label"]).values()) == 60


def test_it_is_the_same_in_every_process_and_built_in_seconds_without_importing(data: DataSet) -> None:
    code = (
        "import sys, time\n"
        "from autopeft.domain.spec import DataSpec\n"
        "from autopeft.evaluate.data.load import load_data\n"
        "before = set(sys.modules)\n"
        "began = time.process_time()\n"
        "print(load_data(DataSpec(), seed=9).fingerprint)\n"
        "print(time.process_time() - began)\n"
        "print(sorted({'imaplib', 'unittest.mock', 'doctest', 'wsgiref.validate'} & (set(sys.modules) - before)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    fingerprint, seconds, imported = done.stdout.split("\n")[:3]
    assert fingerprint == data.fingerprint
    assert float(seconds) < 30  # about 2 on a quiet machine; this catches a walk over the whole library only
    assert imported == "[]"


def test_the_seed_of_the_search_does_not_change_it(data: DataSet) -> None:
    assert load_data(DataSpec(), seed=5).fingerprint == data.fingerprint


def test_asking_again_in_one_process_does_not_build_it_again() -> None:
    python_docs.tables()
    began = time.process_time()
    python_docs.tables()
    assert time.process_time() - began < 0.5


def word(number: int) -> str:
    """A word of its own for every number; texts that differ in digits only count as equal."""
    return "".join("abcdefghij"[int(digit)] for digit in f"{number:03}")


def library(folder: Path, modules: dict[str, int]) -> Path:
    """A folder with so many documented functions per module, as a standard library's."""
    for module, count in modules.items():
        file = folder / f"{module}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        unmasked = module.replace("/", "")
        words = (f"Return the {unmasked} value that we once called {word(i)} of all these." for i in range(count))
        file.write_text("".join(f'def f{i}():\n    """{text}"""\n' for i, text in enumerate(words)))
    return folder


def test_source_files_alone_suffice_and_absent_modules_are_left_out(tmp_path: Path) -> None:
    modules = {"logging/handlers": 90, "asyncio/tasks": 90, "asyncio/broken": 1, "email": 20, "json": 90}
    folder = library(tmp_path, modules)
    (folder / "asyncio/broken.py").write_text("def (:\n")
    library(folder, {"logging/test/more": 500})
    tables = python_docs.tables(Sizes(train=50, validation=12, test=12), folder)
    # email has too little to say, json is of no area, broken files and tests are passed over.
    assert set(tables["train"].columns["label"]) == {"logging", "asyncio"}
    assert {name: table.rows for name, table in tables.items()} == {"train": 100, "validation": 24, "test": 24}


def test_python_without_source_files_is_a_mistake_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        python_docs.tables(Sizes(), tmp_path)
    (found,) = caught.value.problems
    assert "0 areas" in found.found
    assert "data.train" in found.next_step
