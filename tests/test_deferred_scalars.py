"""Scalars of a device are in the storage by the time that the writers write, each at its place."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from balms_det.modeling.deferred_scalars import put_pending_scalars, put_scalar


def history(storage, name):
    return [(iteration, value) for value, iteration in storage.history(name).values()]


def run(device, iterations, nan_in=()):
    with EventStorage(0) as storage:
        for storage.iter in range(iterations):
            for stage in range(2):
                value = float("nan") if storage.iter in nan_in else storage.iter + stage / 4
                with storage.name_scope(f"stage{stage}"):
                    put_scalar("accuracy", torch.tensor(value, device=device), skip_nan=True)
            yield storage


def test_a_scalar_of_the_host_is_there_at_once():
    for storage in run("cpu", 3):
        found = storage.latest()
        assert found["stage0/accuracy"] == (storage.iter, storage.iter)
        assert found["stage1/accuracy"] == (storage.iter + 0.25, storage.iter)


@pytest.mark.gpu
def test_scalars_of_a_device_are_there_when_writers_write(device):
    for storage in run(device, 45):
        if storage.iter == 0:
            assert not storage.latest()
        if (storage.iter + 1) % 20 == 0:
            expected = [(i, float(i)) for i in range(storage.iter + 1)]
            assert history(storage, "stage0/accuracy") == expected
            assert history(storage, "stage1/accuracy") == [(i, v + 0.25) for i, v in expected]
    put_pending_scalars(storage)
    assert len(history(storage, "stage1/accuracy")) == 45
    put_pending_scalars(storage)  # of which there are no more
    assert set(storage.latest()) == {"stage0/accuracy", "stage1/accuracy"}


def test_no_nan_is_put_where_it_means_nothing(device):
    storage = list(run(device, 20, nan_in=(3, 19)))[-1]
    assert [i for i, _ in history(storage, "stage0/accuracy")] == [
        i for i in range(20) if i not in (3, 19)
    ]
    with EventStorage(19) as storage:
        put_scalar("loss", torch.tensor(float("nan"), device=device))
    assert len(history(storage, "loss")) == 1


def test_a_storage_that_is_gone_leaves_nothing(device):
    from balms_det.modeling import deferred_scalars

    before = len(deferred_scalars._pending)
    storages = list(run(device, 1))
    assert len(deferred_scalars._pending) == before + 1
    storages.clear()
    assert len(deferred_scalars._pending) == before
