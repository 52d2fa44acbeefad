"""The modes themselves: what waits for a GPU fails, and what does not wait passes."""

import numpy as np
import pytest
import torch

from tests.device_syncs import DeviceSyncError, fake_gpu, no_device_syncs

WAITING = [
    lambda values: values.sum().item(),
    lambda values: values.tolist(),
    lambda values: values.cpu(),
    lambda values: values.numpy(),
    lambda values: np.asarray(values),
    lambda values: bool(values.sum() > 1),
    lambda values: float(values[0]),
    lambda values: range(values[0]),
    lambda values: 3 in values,
    lambda values: f"{values[0]}",
    lambda values: torch.equal(values, values),
    lambda values: values.nonzero(),
    lambda values: torch.where(values > 1),
    lambda values: values[values > 1],
    lambda values: values.masked_select(values > 1),
    lambda values: values.clone().index_put_((values > 1,), values[:2]),
    lambda values: values.unique(),
    lambda values: values.unique_consecutive(),
    lambda values: values.bincount(),
    lambda values: values.double().multinomial(1),
    lambda values: values.repeat_interleave(values),
    lambda values: values[[0, 1]],
    lambda values: torch.tensor([3]),
    lambda values: torch.tensor(3, device=values.device),
    lambda values: values.new_tensor(3),
    lambda values: torch.from_numpy(np.arange(4)),
    lambda values: values.to("cpu"),
    lambda values: values.to(device=values.device),
    lambda values: values.to("meta"),
    lambda values: values + torch.empty(4, device="meta"),
]
NOT_WAITING = [
    lambda values: values.where(values > 1, 0),
    lambda values: values.index_put((values > 1,), values[0]),
    lambda values: values.masked_fill(values > 1, 3),
    lambda values: values[values],
    lambda values: torch.zeros(4, dtype=values.dtype).scatter_add_(0, values, values),
    lambda values: values.repeat_interleave(values, output_size=6),
    lambda values: values.repeat_interleave(2),
    lambda values: values * torch.tensor(0.5),
    lambda values: torch.full((), 0.5, device=values.device) * values,
    lambda values: values.to(torch.float64),
    lambda values: values.to("cpu", non_blocking=True) + 1,
]


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("waiting", WAITING)
def test_what_waits_for_a_gpu_fails(waiting, inference):
    with torch.inference_mode(inference):
        values = torch.arange(4)
        with no_device_syncs(), pytest.raises(DeviceSyncError):
            waiting(values)


@pytest.mark.parametrize("working", NOT_WAITING)
def test_what_does_not_wait_is_recorded(working):
    values = torch.arange(4)
    with no_device_syncs() as operations:
        working(values)
    assert operations


def test_a_fake_gpu_shows_tensors_left_on_the_host():
    with fake_gpu() as device:
        values = torch.arange(4, device=device)
        with no_device_syncs():
            assert (values + 1).device == device
        for waiting in (
            lambda: values + torch.arange(4),
            lambda: values.clone().copy_(torch.arange(4)),
            lambda: torch.arange(4).to(device),
            lambda: values.sum().item(),
        ):
            with no_device_syncs(), pytest.raises(DeviceSyncError):
                waiting()
