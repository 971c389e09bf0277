"""Tracked memory equals what can be counted by hand, and watching changes no number."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from autopeft.domain.measurements import MemorySource
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.peaks import TrackedMeter, inference_meter, loading_meter, taken_bytes, training_meter
from autopeft.evaluate.memory.tracker import StorageTracker
from autopeft.evaluate.untouched import Untouched
from tests.unit.evaluate_models import batch, candidate_of, classifier_of

CPU = torch.device("cpu")


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_a_storage_counts_once_and_until_its_last_owner_is_gone() -> None:
    with StorageTracker() as tracker:
        first = torch.zeros(100)
        assert tracker.live_bytes == 400
        view = first.view(10, 10).t()[:5]
        assert tracker.live_bytes == 400
        second = first + 1
        assert tracker.live_bytes == 800
        del first
        assert tracker.live_bytes == 800
        del view
        assert tracker.live_bytes == 400
        del second
    assert (tracker.live_bytes, tracker.peak_bytes) == (0, 800)


def test_a_sparse_tensor_counts_its_indices_and_values() -> None:
    tracker = StorageTracker()
    with tracker:
        made = torch.sparse_coo_tensor(torch.tensor([[0, 2], [1, 1]]), torch.ones(2), (1000, 1000)).coalesce()
        # Two rows of two int64 indices, two float32 values.
        assert tracker.live_bytes == 2 * 2 * 8 + 2 * 4
        rows = made.to_sparse_csr()
        assert tracker.live_bytes > 1001 * 4
    assert rows.values().sum() == 2


def test_what_exists_before_counts_from_its_registration() -> None:
    tensor = torch.zeros(64, dtype=torch.float64)
    tracker = StorageTracker()
    tracker.register([tensor, tensor[:3], tensor.view(8, 8)])
    assert tracker.live_bytes == 512
    del tensor
    assert tracker.live_bytes == 0


def test_saved_activations_of_a_small_network_are_those_counted_by_hand() -> None:
    rows, wide = 8, 32
    network = nn.Sequential(nn.Linear(16, wide, bias=False), nn.GELU(), nn.Linear(wide, 4, bias=False))
    inputs = torch.randn(rows, 16)
    tracker = StorageTracker()
    tracker.register([*network.parameters(), inputs])
    weights = 4 * (16 * wide + wide * 4)
    assert tracker.live_bytes == weights + 4 * rows * 16
    with tracker:
        loss = network(inputs).sum()
        # GELU saves its input, the second linear module the GELU's output; its own output is not saved.
        saved = 4 * (rows * wide + rows * wide)
        assert tracker.live_bytes == weights + 4 * rows * 16 + saved + 4
        loss.backward()
    del loss
    gc.collect()
    assert tracker.live_bytes == 2 * weights + 4 * rows * 16


def test_prediction_holds_two_neighbouring_activations_at_its_peak() -> None:
    widths = (16, 64, 256, 8)
    network = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)))
    inputs = torch.randn(10, widths[0])
    meter = inference_meter(CPU, network)
    with torch.no_grad(), meter.step(0):
        meter.add([inputs])
        network(inputs)
    weights = nbytes(network.parameters())
    expected = weights + 4 * 10 * (16 + 64 + 256)
    peak = meter.peak()
    assert peak is not None
    assert (peak.live_bytes, peak.source, peak.reserved_bytes) == (expected, MemorySource.TRACKED, None)


def test_weights_gradients_and_optimiser_state_are_all_there_in_the_second_step() -> None:
    network = nn.Linear(50, 30, bias=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    inputs, weights = torch.randn(3, 50), 4 * 50 * 30
    network(inputs).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    meter = TrackedMeter({0}, network, optimizer)
    with meter.step(0):
        meter.add([inputs])
        assert meter._tracker is not None
        assert meter._tracker.live_bytes == 3 * weights + 4 + 4 * 3 * 50  # two moments, one step count, the batch
        loss = network(inputs).sum()
        loss.backward()
        del loss
        assert meter._tracker.live_bytes == 4 * weights + 4 + 4 * 3 * 50
        optimizer.step()
    peak = meter.peak()
    assert peak is not None
    assert 4 * weights < peak.live_bytes <= 7 * weights


def saved_bytes_and_loss(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[int, torch.Tensor]:
    """Bytes of what the backward pass will read, by an independent count: the hooks of autograd."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *inputs.values())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    return sum(storage.nbytes() for storage in saved.values()), loss


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_after_the_forward_pass_of_a_transformer_weights_and_saved_activations_are_live(kind: str) -> None:
    model = classifier_of(kind).requires_grad_(False)
    layout = inspect_layout(model)
    inserted = insert(Untouched(model), candidate_of(layout), layout, 0).model.eval()
    inputs = batch()
    static = nbytes([*inserted.parameters(), *inserted.buffers(), *inputs.values()])
    saved, loss = saved_bytes_and_loss(inserted, inputs)
    del loss
    gc.collect()
    tracker = StorageTracker()
    tracker.register([*inserted.parameters(), *inserted.buffers(), *inputs.values()])
    assert tracker.live_bytes == static
    with tracker:
        loss = inserted(**inputs).loss
    gc.collect()
    extra = tracker.live_bytes - static - saved
    assert loss.requires_grad
    # Beside them: the loss, and what a node keeps without saving it, such as the mean's count.
    assert 4 <= extra <= 64, extra
    assert tracker.peak_bytes >= tracker.live_bytes


def peak_of_training(
    variant: str, layers: tuple[int, ...], watched: bool = True
) -> tuple[int, dict[str, torch.Tensor]]:
    model = classifier_of("bert").requires_grad_(False)
    layout = inspect_layout(model)
    candidate = candidate_of(layout, variant, layers=layers, dropout=0.1)
    inserted = insert(Untouched(model), candidate, layout, 0).model.train()
    optimizer = torch.optim.AdamW([part for part in inserted.parameters() if part.requires_grad], lr=1e-2)
    meter = TrackedMeter(range(4) if watched else (), inserted, optimizer)
    for number in range(4):
        with meter.step(number):
            inputs = batch(number)
            meter.add(inputs.values())
            inserted(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    peak = meter.peak()
    return peak.live_bytes if peak else 0, {name: part.detach().clone() for name, part in inserted.named_parameters()}


def test_adapters_in_the_upper_layers_need_less_memory_than_in_all() -> None:
    every, upper, top = (peak_of_training("lora", layers)[0] for layers in ((0, 1, 2), (1, 2), (2,)))
    assert top < upper < every


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa"])
def test_watching_changes_no_number_of_the_training(variant: str) -> None:
    _, watched = peak_of_training(variant, (1, 2))
    _, alone = peak_of_training(variant, (1, 2), watched=False)
    assert watched.keys() == alone.keys()
    for name, part in watched.items():
        assert torch.equal(part, alone[name]), name


@pytest.mark.parametrize(
    ("sizes", "tracked"),
    [([5], {0}), ([5, 5], {1}), ([1, 5, 9, 9, 2], {1, 2}), ([9, 5, 7], {0, 1, 2}), ([3, 9, 9], {1})],
)
def test_the_second_step_and_the_largest_batch_are_watched(sizes: list[int], tracked: set[int]) -> None:
    network = nn.Linear(2, 2)
    meter = training_meter(CPU, sizes, network, torch.optim.AdamW(network.parameters()))
    assert isinstance(meter, TrackedMeter)
    assert meter._steps == tracked
    assert meter.peak() is None


def test_a_sparse_tensor_counts_its_indices_and_its_values() -> None:
    with StorageTracker() as tracker:
        indices, values = torch.tensor([[0, 2, 5], [1, 1, 3]]), torch.ones(3)
        before = tracker.live_bytes
        assert before == nbytes([indices, values])
        held = torch.sparse_coo_tensor(indices, values, (8, 8))
        doubled = held * 2
        assert tracker.live_bytes >= before + 3 * 4
        del doubled
        gc.collect()
        assert tracker.live_bytes < before + 3 * 4 + 2 * 3 * 8


def test_a_machine_without_an_allocator_that_reports_measures_no_loading() -> None:
    assert loading_meter(CPU) is None
    assert taken_bytes(CPU) is None
