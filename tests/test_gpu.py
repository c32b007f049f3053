"""The comparisons of `test_device` on a GPU, where there is one: rounding differs there, masks do not."""

import numpy as np
import pytest
from test_device import (  # noqa: F401 - pytest finds the tests here, and runs them with the fixtures of this file
    test_a_run_on_a_device_stops_in_the_middle_of_an_epoch_and_goes_on,
    test_collectives_take_device_vectors,
    test_dropout_masks_are_the_same_bits,
    test_early_stopping_keeps_the_best_on_a_device,
    test_models_compute_on_a_device_as_on_the_host,
    test_no_rows_give_zero,
    test_settings_of_training_work_on_a_device,
    test_training_on_a_device_is_training_on_the_host,
    test_updates_below_the_last_bit_are_not_lost,
    test_updates_on_a_device_are_those_of_the_host,
)

from distai_mpi import backend
from distai_mpi.comm.launch import launcher
from distai_mpi.errors import ConfigError


@pytest.fixture(scope="module")
def device():
    try:
        return backend.choose("gpu", launcher().rank)
    except ConfigError as error:
        pytest.skip(f"not available: CUDA device ({error})")


@pytest.fixture
def tolerance():
    """Relative, by dtype: sums run in another order, and functions have other last bits."""
    return {np.float64: 1e-11, np.float32: 5e-5}


def test_copies_and_memory_of_a_gpu(device):
    host = device.host_empty(1000, np.float32)
    host[:] = np.arange(1000)
    there = device.zeros(1000, np.float32)
    device.put(host, there)
    host[:] = -1  # a copy that were still under way would see it
    there *= 2
    device.get(there, host)
    np.testing.assert_array_equal(host, 2 * np.arange(1000))
    assert device.host_empty((0, 5), np.float64).shape == (0, 5)
    assert backend.device_of(device.read_only(there)) is device
    free, total = device.memory()
    assert 0 < free <= total
    device.synchronize()
