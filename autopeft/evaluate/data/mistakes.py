"""Collecting everything that is wrong with a data set before anything is said about it."""

from __future__ import annotations

from collections import Counter

from autopeft.domain.errors import Problem, UserError

SHOWN_PER_KIND = 3
"""Lines of one file with the same mistake that are named one by one; the rest are counted."""


class Mistakes:
    """Problems found so far, in the order of finding."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._seen: Counter[tuple[str, str]] = Counter()

    def add(self, problem: Problem) -> None:
        """Keep this problem."""
        self._problems.append(problem)

    def add_row(self, table: str, kind: str, problem: Problem) -> None:
        """Keep a problem of one row, unless `table` has shown enough of the same `kind`; then it is only counted."""
        self._seen[table, kind] += 1
        if self._seen[table, kind] <= SHOWN_PER_KIND:
            self._problems.append(problem)

    def __len__(self) -> int:
        return sum(self._seen.values()) + len(self._problems)

    def raise_if_any(self) -> None:
        """Raises UserError with every problem, where there is one."""
        more = [
            Problem(table, f"{count - SHOWN_PER_KIND} more rows like this: {kind}")
            for (table, kind), count in self._seen.items()
            if count > SHOWN_PER_KIND
        ]
        if self._problems:
            raise UserError(*self._problems, *more)


LEAST_ROWS = {"train": 4, "validation": 3, "test": 1}
"""Fewer rows than this can neither be learned from nor scored."""


def check_rows(split: str, table: str, rows: int, mistakes: Mistakes) -> None:
    """A split with too few rows is a mistake."""
    least = LEAST_ROWS[split]
    if rows < least:
        found = f"it holds {rows} rows, too few for a {split} split"
        mistakes.add(Problem(table, found, f"at least {least} rows", "Add rows."))
