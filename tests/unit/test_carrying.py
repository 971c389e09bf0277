"""Candidates carried over to another model: by relative depth and by role."""

import pytest

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.carrying import rebound
from autopeft.domain.errors import UserError
from tests.unit.space_layouts import BERT, GPT2, LLAMA, layout


def lora(layers, modules=("attention.query",)):
    return Candidate(
        insertions=(Insertion(method="lora", layers=layers, modules=modules, settings={"rank": 4}),),
        learning_rate=1e-3,
    )


@pytest.mark.parametrize(
    ("layers", "before", "after", "expected"),
    [
        (range(6), 6, 12, range(12)),
        (range(12), 12, 6, range(6)),
        (range(4, 6), 6, 12, range(8, 12)),
        (range(8, 12), 12, 6, range(4, 6)),
        (range(11, 12), 12, 6, range(5, 6)),
        (range(5, 6), 6, 12, range(11, 12)),  # one layer stays one: the cheapest point stays the cheapest
        (range(1), 6, 12, range(1)),
        (range(3), 3, 3, range(3)),
        (range(10, 12), 12, 24, range(20, 24)),
        (range(9, 12), 12, 8, range(6, 8)),
    ],
)
def test_layers_keep_their_place_in_the_depth(layers, before, after, expected):
    found = rebound(lora(tuple(layers)), layout(BERT, before), layout(BERT, after))
    assert found.insertions[0].layers == tuple(expected)


@pytest.mark.parametrize("after", [1, 2, 5, 7, 12, 33])
@pytest.mark.parametrize("before", [1, 3, 6, 12])
def test_all_stay_all_and_the_top_stays_the_top(before, after):
    everything = rebound(lora(tuple(range(before))), layout(BERT, before), layout(BERT, after))
    assert everything.insertions[0].layers == tuple(range(after))
    for count in range(1, before + 1):
        top = rebound(lora(tuple(range(before - count, before))), layout(BERT, before), layout(BERT, after))
        layers = top.insertions[0].layers
        assert layers == tuple(range(after - len(layers), after))


def test_modules_go_by_role():
    bert, gpt2, llama = layout(BERT, 4), layout(GPT2, 4), layout(LLAMA, 4)

    def roles(modules, before, after):
        return rebound(lora((3,), tuple(sorted(modules))), before, after).insertions[0].modules

    assert roles({"attention.query", "attention.value"}, bert, llama) == ("attention.query", "attention.value")
    assert roles({"attention.query", "attention.value"}, bert, gpt2) == ("attention.qkv",)
    assert roles({"attention.qkv"}, gpt2, bert) == ("attention.key", "attention.query", "attention.value")
    assert roles(bert.roles(), bert, llama) == tuple(sorted(llama.roles()))
    assert roles(llama.roles(), llama, bert) == tuple(sorted(bert.roles()))
    assert roles({"ffn.in", "ffn.out"}, bert, llama) == ("ffn.gate", "ffn.in", "ffn.out")
    with pytest.raises(UserError, match=r"the model has no ffn\.gate; allowed: .*ffn\.in"):
        roles({"ffn.gate"}, llama, bert)
