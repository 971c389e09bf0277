"""The recorded tables that belong to the project: whole, small, and with the command that makes them anew."""

from pathlib import Path

import pytest

from autopeft.search.replay import Truth
from autopeft.store.recorded import read_table

FOLDER = Path(__file__).parents[1] / "bench" / "tables"
TABLES = sorted(FOLDER.glob("*.parquet"))


def test_all_of_them_are_below_2_mb():
    assert TABLES
    assert sum(path.stat().st_size for path in TABLES) < 2_000_000


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_can_be_replayed_and_says_how_it_was_made(path):
    table = read_table(path)
    truth = Truth(table)
    assert truth.complete >= 0.9 * len(table.trainings) >= 100
    assert 0 < truth.reference < 1
    assert all(len(trainings) == table.facts.seeds == 3 for trainings in table.trainings.values())
    assert table.facts.command.startswith("autopeft bench record --space ")
    assert table.facts.command.endswith(f"--out {path.relative_to(FOLDER.parents[2])}")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_holds_no_path_of_a_machine(path):
    for told in (b"/home/", b"/root/", b"/tmp/", b"/work/"):
        assert told not in path.read_bytes()
