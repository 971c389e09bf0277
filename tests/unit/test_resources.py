"""Workers get what the machine has, and what does not fit is refused before anything starts."""

import pytest

from autopeft.app.planning import decide_resources, device_bytes
from autopeft.domain.errors import UserError
from autopeft.domain.spec import ResourceSpec
from autopeft.evaluate.devices import DeviceFacts


def machine(cores=8, gpus=0):
    return DeviceFacts(
        cores=cores,
        memory_bytes=2**34,
        gpus=gpus,
        gpu_names=("a GPU",) * gpus,
        gpu_memory_bytes=(2**34,) * gpus,
    )


@pytest.mark.parametrize(
    ("asked", "facts", "workers", "cpus", "gpus"),
    [
        ({}, machine(cores=2), 2, 1, 0),
        ({}, machine(cores=16), 4, 4, 0),
        ({"runner": "local"}, machine(cores=2), 1, 2, 0),
        ({"workers": 3}, machine(cores=8), 3, 2, 0),
        ({}, machine(gpus=2), 2, 4, 1),
        ({"workers": 4}, machine(gpus=1), 4, 2, 0.25),
        ({"workers": 3}, machine(gpus=2), 3, 2, 0.5),
        ({"gpus_per_worker": 0.5}, machine(gpus=2), 4, 2, 0.5),
        ({"workers": 3, "gpus_per_worker": 1 / 3}, machine(gpus=1), 3, 2, 1 / 3),
        ({"gpus_per_worker": 2}, machine(gpus=4), 2, 4, 2),
        ({"gpus_per_worker": 0}, machine(gpus=1), 4, 2, 0),
    ],
)
def test_what_the_spec_leaves_open_is_filled_in(asked, facts, workers, cpus, gpus):
    found = decide_resources(ResourceSpec(**asked), facts)
    assert (found.workers, found.cpus_per_worker, found.gpus_per_worker) == (workers, cpus, gpus)


@pytest.mark.parametrize(
    ("asked", "facts", "words"),
    [
        ({"gpus_per_worker": 1}, machine(), "torch sees none"),
        ({"workers": 2, "runner": "local"}, machine(), "one worker"),
        ({"workers": 2, "gpus_per_worker": 1}, machine(gpus=1), "do not fit"),
        ({"workers": 3, "gpus_per_worker": 0.5}, machine(gpus=1), "do not fit"),
        ({"gpus_per_worker": 1.5}, machine(gpus=4), "whole number"),
    ],
)
def test_what_does_not_fit_is_refused(asked, facts, words):
    with pytest.raises(UserError, match=words):
        decide_resources(ResourceSpec(**asked), facts)


def test_a_cluster_may_have_what_this_machine_lacks():
    asked = ResourceSpec(workers=8, gpus_per_worker=1, ray_address="head:6379")
    assert decide_resources(asked, machine()).workers == 8


@pytest.mark.parametrize(
    ("asked", "facts", "share"),
    [
        ({}, machine(cores=8), None),
        ({"gpus_per_worker": 0}, machine(gpus=1), None),
        ({}, machine(gpus=1), 1.0),
        ({"workers": 4}, machine(gpus=1), 0.25),
        ({"gpus_per_worker": 2}, machine(gpus=4), 1.0),
        ({"ray_address": "auto", "workers": 2, "gpus_per_worker": 1}, machine(gpus=1), None),
    ],
)
def test_a_worker_has_its_share_of_a_gpu_less_its_context(asked, facts, share):
    found = device_bytes(decide_resources(ResourceSpec(**asked), facts), facts)
    assert found == (None if share is None else int(share * 2**34) - (600 << 20))


def test_of_unequal_gpus_the_smallest_counts():
    facts = machine(gpus=2)
    uneven = type(facts)(**{**vars(facts), "gpu_memory_bytes": (2**35, 2**34)})
    assert device_bytes(decide_resources(ResourceSpec(), uneven), uneven) == 2**34 - (600 << 20)
