"""The device layer on the simulated CUDA runtime."""

import gc
import inspect

import numpy as np
import pytest
from cuda.bindings import runtime as real
from simulator_cuda import CudaSimulator

from flux_trt.runtime.backends.device import ALIGNMENT, Gpu
from flux_trt.runtime.errors import BackendError, GpuMemoryError


@pytest.fixture
def cuda():
    return CudaSimulator(memory=1 << 20)


@pytest.fixture
def gpu(cuda):
    made = Gpu(cuda)
    yield made
    made.close()
    made.close()


def test_the_simulated_calls_are_those_of_cuda_bindings():
    names = [name for name in vars(CudaSimulator) if name.startswith("cuda") and name[4].isupper()]
    calls = [name for name in names if inspect.isfunction(vars(CudaSimulator)[name])]
    assert len(calls) > 15
    for name in calls:
        mine = list(inspect.signature(vars(CudaSimulator)[name]).parameters)[1:]
        text = real.__dict__[name].__doc__.splitlines()[0]  # a compiled function: "name(type first, second)"
        inside = text[text.index("(") + 1 : text.rindex(")")]
        theirs = [part.split(":")[0].split("=")[0].split()[-1] for part in inside.split(",") if part.strip()]
        assert mine == theirs, name


def test_every_call_of_the_device_layer_exists():
    import re
    from pathlib import Path

    from flux_trt.runtime.backends import device

    used = set(re.findall(r"\bcuda[A-Z]\w+", Path(device.__file__).read_text()))
    enums = {
        *real.cudaError_t.__members__,
        *real.cudaMemcpyKind.__members__,
        *real.cudaDeviceAttr.__members__,
    }
    enums |= set(real.cudaStreamCaptureMode.__members__)
    assert not {name for name in used if not hasattr(real, name) and name not in enums}
    assert not {name for name in used if not hasattr(CudaSimulator, name) and name not in enums}


def test_the_gpu_says_what_it_is(gpu):
    assert str(gpu) == "Simulated GPU (sm 8.9)"
    assert gpu.free_bytes() == 1 << 20


def test_values_go_there_and_back(gpu):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    buffer = gpu.upload(values)
    assert (buffer.shape, buffer.dtype, buffer.nbytes, buffer.on_host) == ((2, 3, 4), np.float32, 96, False)
    np.testing.assert_array_equal(buffer.numpy(), values)
    np.testing.assert_array_equal(buffer[1].numpy(), values[1])
    np.testing.assert_array_equal(buffer[1][2].numpy(), values[1, 2])
    np.testing.assert_array_equal(buffer.reshape(6, 4).numpy(), values.reshape(6, 4))
    with pytest.raises(IndexError):
        buffer[2]
    with pytest.raises(ValueError, match="cannot be seen as"):
        buffer.reshape(5)
    with pytest.raises(ValueError, match="float64"):
        gpu.write(buffer, values.astype(np.float64))


def test_an_array_may_go_as_soon_as_it_is_uploaded(gpu):
    values = np.ones((4, 4), np.float32).T[::-1]
    buffer = gpu.upload(values)
    values[:] = 5
    del values
    np.testing.assert_array_equal(buffer.numpy(), np.ones((4, 4)))


def test_new_memory_is_poison_and_work_waits_for_its_turn(gpu, cuda):
    buffer = gpu.empty((3,), np.float32)
    assert np.isnan(buffer.numpy()).all()
    gpu.write(buffer, np.ones(3, np.float32))
    import ctypes

    raw = np.ctypeslib.as_array((ctypes.c_float * 3).from_address(buffer.pointer))
    assert np.isnan(raw).all(), "the copy is queued, not done"
    gpu.synchronize()
    assert (raw == 1).all()


def test_memory_is_freed_with_its_last_buffer(gpu, cuda):
    buffer = gpu.upload(np.zeros(100, np.float32))
    row = buffer.reshape(10, 10)[3]
    used = cuda.used
    del buffer
    gc.collect()
    assert cuda.used == used
    del row
    gc.collect()
    assert cuda.used == 0


def test_out_of_memory_says_how_much(gpu):
    with pytest.raises(GpuMemoryError, match=r"Simulated GPU \(sm 8.9\) is out of memory: 0.01 GB asked"):
        gpu.empty((1 << 21,), np.float32)
    assert gpu.upload(np.ones(1)).numpy() == 1


@pytest.mark.parametrize("width", [3, 64])
def test_rows_are_aligned(gpu, width):
    values = np.arange(5 * width, dtype=np.float32).reshape(5, width)
    buffer = gpu.upload(values)
    rows = gpu.rows(buffer)
    assert all(row.pointer % ALIGNMENT == 0 for row in rows)
    assert (rows[1].pointer == buffer[1].pointer) == (width == 64)
    np.testing.assert_array_equal([row.numpy() for row in rows], values)
    gpu.write(buffer, values * 2)
    again = gpu.rows(buffer, rows)
    assert [row.pointer for row in again] == [row.pointer for row in rows]
    np.testing.assert_array_equal([row.numpy() for row in again], values * 2)


def copying(gpu, count=3):
    """Work that moves each row to the next one's place, and its buffer."""
    buffer = gpu.upload(np.arange(4 * 64, dtype=np.float32).reshape(4, 64))
    kind = gpu.driver.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def work():
        for row in range(count):
            gpu.call("cudaMemcpyAsync", buffer[row + 1].pointer, buffer[row].pointer, 256, kind, gpu.stream)

    return buffer, work


def test_a_recording_is_not_run_but_can_be_launched_often(gpu, cuda):
    buffer, work = copying(gpu)
    launch = gpu.record(work)
    assert buffer.numpy()[1, 0] == 64
    launch()
    assert (buffer.numpy() == buffer.numpy()[0]).all()
    gpu.write(buffer, buffer.numpy() * 0 + np.arange(4, dtype=np.float32)[:, None])
    launch()
    assert (buffer.numpy() == 0).all()
    launch.close()
    launch.close()
    assert cuda.calls["cudaGraphLaunch"] == 2


@pytest.mark.parametrize(
    "deed",
    [
        lambda gpu, buffer: gpu.empty((1,), np.float32),
        lambda gpu, buffer: gpu.upload(np.ones(1)),
        lambda gpu, buffer: buffer.numpy(),
        lambda gpu, buffer: gpu.synchronize(),
    ],
)
def test_allocating_or_waiting_breaks_a_recording_and_nothing_else(gpu, deed):
    buffer, _ = copying(gpu)
    with pytest.raises(BackendError, match="StreamCaptureUnsupported"):
        gpu.record(lambda: deed(gpu, buffer))
    assert buffer.numpy()[3, 0] == 192


def test_a_hidden_fault_breaks_a_recording(gpu):
    """Somebody else's code swallows the error; the recording must not seem whole."""

    def work():
        gpu.driver.cudaMalloc(16)

    with pytest.raises(BackendError, match="StreamCaptureInvalidated"):
        gpu.record(work)


def test_what_dies_while_recording_is_freed_afterwards(gpu, cuda):
    buffer, work = copying(gpu)
    doomed = [gpu.upload(np.ones(8))]
    gpu.synchronize()

    def both():
        work()
        doomed.clear()
        gc.collect()

    launch = gpu.record(both)
    launch()
    assert (buffer.numpy()[1:, 0] == 0).all()
    gpu.empty((1,), np.float32)
    assert cuda.used == buffer.nbytes


def test_a_wrong_address_is_told_and_stays(gpu, cuda):
    buffer, work = copying(gpu, count=4)  # one row too far
    work_fault = pytest.raises(IndexError)
    with work_fault:
        work()
    kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    gpu.call("cudaMemcpyAsync", buffer.pointer + 1000, buffer.pointer, 256, kind, gpu.stream)
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
        gpu.synchronize()
    cuda._sticky = None  # else the fixture could not close


def test_without_a_gpu_the_message_names_the_call():
    if real.cudaGetDeviceCount()[0] == real.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match="cudaSetDevice failed on the GPU: cudaError"):
        Gpu()
