"""The device layer on a real GPU."""

import numpy as np
import pytest
from at_gpu import FAULT

from flux_trt.runtime.backends.device import Gpu
from flux_trt.runtime.errors import BackendError, GpuMemoryError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(FAULT is not None, reason=f"needs a GPU: {FAULT}")]


@pytest.fixture
def gpu():
    made = Gpu()
    yield made
    made.close()


def test_values_go_there_and_back(gpu):
    values = np.arange(1 << 20, dtype=np.float32).reshape(64, -1)
    buffer = gpu.upload(values)
    np.testing.assert_array_equal(buffer.numpy(), values)
    np.testing.assert_array_equal(buffer[63].numpy(), values[63])


@pytest.mark.parametrize("width", [3, 64])
def test_rows_are_aligned(gpu, width):
    values = np.arange(5 * width, dtype=np.float32).reshape(5, width)
    rows = gpu.rows(gpu.upload(values))
    assert all(row.pointer % 256 == 0 for row in rows)
    np.testing.assert_array_equal([row.numpy() for row in rows], values)


def test_memory_comes_back(gpu):
    free = gpu.free_bytes()
    buffer = gpu.empty((1 << 28,), np.uint8)
    assert gpu.free_bytes() <= free - (1 << 28)
    del buffer
    assert gpu.free_bytes() >= free - (1 << 22)


def test_too_much_is_refused_and_nothing_breaks(gpu):
    with pytest.raises(GpuMemoryError, match="is out of memory"):
        gpu.empty((1 << 50,), np.uint8)
    assert gpu.upload(np.ones(1)).numpy() == 1


def test_a_recording_is_not_run_but_can_be_launched_often(gpu):
    buffer = gpu.upload(np.arange(4 * 64, dtype=np.float32).reshape(4, 64))
    kind = gpu.driver.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def work():
        for row in range(3):
            gpu.call("cudaMemcpyAsync", buffer[row + 1].pointer, buffer[row].pointer, 256, kind, gpu.stream)

    launch = gpu.record(work)
    assert buffer.numpy()[1, 0] == 64
    for value in (5, 7):
        gpu.write(buffer[0], np.full(64, value, np.float32))
        launch()
        assert (buffer.numpy() == value).all()
    launch.close()


@pytest.mark.parametrize("deed", [lambda gpu: gpu.empty((1,), np.uint8), lambda gpu: gpu.synchronize()])
def test_what_cuda_forbids_breaks_a_recording_and_nothing_else(gpu, deed):
    with pytest.raises(BackendError):
        gpu.record(lambda: deed(gpu))
    assert gpu.upload(np.ones(1)).numpy() == 1
