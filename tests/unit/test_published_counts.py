"""Trainable parameters on a BERT of the usual size beside the shares that papers print; `pytest -s` shows the table.

AutoPEFT's tables (Zhou et al., TACL 2024) count weights without biases and without the head, and divide by BERT's
109,482,240 parameters without a head: a serial adapter of size 48 has 12 * 2 * 768 * 48 = 884,736, which is 0.81 %.
Ours count every trainable parameter but the head's, so adapters have their biases more.
"""

from dataclasses import dataclass
from typing import Any

import pytest

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.methods import METHODS
from tests.contract.method_runs import bert_base_layout

BERT = 109_482_240
LAYERS, WIDE = 12, 768


@dataclass(frozen=True)
class Row:
    """A published share and the settings that give it."""

    name: str
    insertions: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...]
    formula: str
    weights: int
    """By the formula: no biases."""
    biases: int
    published: float
    """Per cent, of two decimals."""


def adapter(method: str, size: int) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    return method, ("ffn.out",), {"size": size}


def prefix(length: int) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    return "prefix", (), {"length": length}


def lora(*roles: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    return "lora", tuple(f"attention.{role}" for role in sorted(roles)), {"rank": 8}


ROWS = (
    Row("LoRA, rank 8, query and value", (lora("query", "value"),), "12*2*8*(768+768)", 294_912, 0, 0.27),
    Row("serial adapter, size 48", (adapter("serial", 48),), "12*48*(768+768)", 884_736, LAYERS * (48 + WIDE), 0.81),
    Row("prefix of 10", (prefix(10),), "12*10*2*768", 184_320, 0, 0.17),
    Row(
        "MAM: parallel 384 + prefix of 30",
        (adapter("parallel", 384), prefix(30)),
        "12*(384*(768+768) + 30*2*768)",
        7_630_848,
        LAYERS * (384 + WIDE),
        6.97,
    ),
    Row(
        "UniPELT: serial 48 + prefix of 10 + LoRA on three",
        (adapter("serial", 48), prefix(10), lora("key", "query", "value")),
        "12*(48*(768+768) + 10*2*768 + 3*8*(768+768))",
        1_511_424,
        LAYERS * (48 + WIDE),
        1.38,
    ),
)
"""UniPELT's share is that of its three parts without gates and with LoRA on query, key and value: inferred from it."""


def counted(layout: ModelLayout, row: Row) -> int:
    found = 0
    for method, roles, settings in row.insertions:
        insertion = Insertion(
            method=method,
            layers=tuple(range(LAYERS)),
            modules=roles,
            settings={**METHODS[method].facts.defaults, **settings},
        )
        assert METHODS[method].problems(insertion, layout) == []
        found += METHODS[method].trainable(insertion, layout)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_published_share_is_ours_without_biases(row: Row) -> None:
    layout = bert_base_layout()
    assert layout.parameters - layout.head_parameters == BERT
    ours = counted(layout, row)
    print(
        f"\n{row.name}: {ours:,} = {ours / BERT:.4%}; without {row.biases:,} biases {row.weights:,} = "
        f"{row.weights / BERT:.4%} = {row.formula}; published {row.published} %"
    )
    assert eval(row.formula) == row.weights
    assert ours == row.weights + row.biases
    assert round(100 * row.weights / BERT, 2) == row.published


def test_the_published_parallel_adapter_fits_no_size_of_the_ladder() -> None:
    """4.63 % are 5.07 million weights, a size of 275 where the ladder has 192 and 384; both are printed."""
    layout = bert_base_layout()
    shares = {}
    for size in (192, 275, 384):
        ours = counted(layout, Row("", (adapter("parallel", size),), "", 0, 0, 0.0))
        weights = LAYERS * size * 2 * WIDE
        assert ours == weights + LAYERS * (size + WIDE)
        shares[size] = round(100 * weights / BERT, 2)
        print(f"\nparallel adapter, size {size}: {ours:,} = {ours / BERT:.4%}; without biases {shares[size]} %")
    assert shares[192] < 4.63 < shares[384]
    assert abs(shares[275] - 4.63) < 0.005


def test_full_fine_tuning_trains_all_of_it_and_bitfit_a_thousandth() -> None:
    """Ben Zaken et al., 2022, table 1: 0.08 % of BERT-large and 0.09 % of BERT-base."""
    layout = bert_base_layout()
    every = tuple(range(LAYERS))

    def count(method: str) -> int:
        return METHODS[method].trainable(Insertion(method=method, layers=every, modules=()), layout)

    per_layer = 3 * WIDE + WIDE + 4 * WIDE + WIDE + 2 * WIDE
    print(f"\nBitFit: {count('bitfit'):,} = 12*(11*768) = {count('bitfit') / BERT:.4%}; published 0.09 %")
    assert count("full") == BERT
    assert count("bitfit") == LAYERS * per_layer == 101_376
    assert round(100 * count("bitfit") / BERT, 2) == 0.09
    assert count("layernorm") == LAYERS * 2 * 2 * WIDE
