"""Where arrays live: NumPy's in host memory, CuPy's on a GPU.  The only importer of CuPy, and only where one is used.

Code that is to run on both asks an array for its namespace (``xp = namespace(w)``) and calls ``xp.dot(...)``;
copies between host and device are made here alone, by name.  An array of a kind that is not known here is
taken for a host array.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from typing import Any

import numpy as np

from .errors import ConfigError
from .settings import called

Array = Any
HOST_BLOCK = 1 << 16  # elements: temporaries of a pass stay in the cache
DEVICE_BLOCK = 1 << 24  # elements: few launches, and temporaries small beside the device's memory


class Device:
    """Where arrays live and are computed on; this base class is the host, with NumPy.

    Attributes:
        name: as in result.json.
        xp: the namespace of its arrays' functions, NumPy's names.
        array_type: the class of its arrays.
        compiled: whether the package's Numba kernels can read its arrays.
        block: elements that a pass with temporaries handles at once.
    """

    name = "cpu"
    compiled = True
    block = HOST_BLOCK
    xp: Any = np
    array_type: type = np.ndarray

    def zeros(self, shape: Any, dtype: Any) -> Array:
        """A new array of zeros."""
        return self.xp.zeros(shape, dtype)

    def host_empty(self, shape: Any, dtype: Any) -> np.ndarray:
        """A new host array, for copies to and from this device: page-locked where that is faster."""
        return np.empty(shape, dtype)

    def put(self, host: np.ndarray, out: Array) -> None:
        """Copy ``host`` to ``out``, an array here of its shape and dtype; ``host`` may change afterwards."""
        out[...] = host

    def get(self, array: Array, out: np.ndarray) -> None:
        """Copy ``array``, which lives here, to the host array ``out`` of its shape and dtype."""
        out[...] = array

    def read_only(self, array: Array) -> Array:
        """A view of ``array`` that NumPy refuses to write to; on a GPU nothing can refuse."""
        view = array.view()
        view.flags.writeable = False
        return view

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the memory here that the operating system or driver tells of."""
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")

    def synchronize(self) -> None:
        """Wait until everything that was started here is done."""


class CudaDevice(Device):
    """GPU number ``index`` of those that CuPy sees (CUDA_VISIBLE_DEVICES); it becomes this process's current one."""

    name = "gpu"
    compiled = False
    block = DEVICE_BLOCK

    def __init__(self, index: int = 0) -> None:
        import cupy
        import cupyx

        self.index, self.xp, self.array_type = index, cupy, cupy.ndarray
        self._empty_pinned = cupyx.empty_pinned
        cupy.cuda.Device(index).use()
        register(self)

    def host_empty(self, shape: Any, dtype: Any) -> np.ndarray:
        """As `Device.host_empty`, page-locked."""
        plain = np.empty(shape, dtype)  # its pages are not touched: it costs address space alone
        return self._empty_pinned(plain.shape, plain.dtype) if plain.size else plain

    def put(self, host: np.ndarray, out: Array) -> None:
        """As `Device.put`, in the order of the current stream."""
        out.set(host)
        # from page-locked memory the copy may still be under way, and the host buffer is about to be filled again
        self.synchronize()

    def get(self, array: Array, out: np.ndarray) -> None:
        """As `Device.get`; waits for what computes ``array``."""
        array.get(out=out)

    def read_only(self, array: Array) -> Array:
        """A view of ``array``; CuPy has no read-only arrays."""
        return array.view()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the GPU; what CuPy's pool holds counts as taken."""
        return self.xp.cuda.Device(self.index).mem_info

    def synchronize(self) -> None:
        """Wait for the current stream."""
        self.xp.cuda.get_current_stream().synchronize()


HOST = Device()
_BY_TYPE: dict[type, Device] = {}


def register(device: Device) -> None:
    """Let `device_of` find ``device`` by the type of its arrays."""
    _BY_TYPE[device.array_type] = device


def device_of(array: Array) -> Device:
    """Where ``array`` lives."""
    return _BY_TYPE.get(type(array), HOST)


def namespace(array: Array) -> Any:
    """The module of functions for ``array``: NumPy or CuPy."""
    return device_of(array).xp


def as_host(value: Any) -> Any:
    """``value`` itself, or a copy in host memory if it is an array on a device."""
    device = device_of(value)
    if device is HOST:
        return value
    out = np.empty(value.shape, value.dtype)
    device.get(value, out)
    return out


def number(value: Any) -> float:
    """``value``, a number or an array of shape () wherever it lives, as a float of Python."""
    return float(as_host(value))


def choose(name: str, local_rank: int = 0) -> Device:
    """The device called ``name`` for the rank with this index on its node; local.

    ``cpu``: the host.  ``gpu``: the node's GPU number ``local_rank``, counted round where ranks are
    more than GPUs; CUDA_VISIBLE_DEVICES is respected.  ``auto``: the GPU where CuPy is installed and
    sees one, else the host; without CuPy nothing is loaded.

    Raises:
        ConfigError: there is no such device, CuPy is missing, or it sees no GPU.
    """
    if name not in ("cpu", "gpu", "auto"):
        raise ConfigError(f"unknown device {name!r}: choose cpu, gpu or auto")
    if name == "cpu" or (name == "auto" and importlib.util.find_spec("cupy") is None):
        return HOST
    try:
        return CudaDevice(local_rank % count_gpus())
    except ConfigError as error:
        if name == "gpu":
            device = called("device")
            raise ConfigError(f"{device} gpu: {error}; else use {device} cpu") from None
        return HOST


def count_gpus() -> int:
    """How many GPUs CuPy sees, 1 at least.

    Raises:
        ConfigError: CuPy is missing, or it sees no GPU; what to do.
    """
    try:
        import cupy
    except Exception as error:  # what a damaged or mismatched installation raises is its own affair
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        reason = "is not installed" if missing else f"cannot be loaded ({error})"
        raise ConfigError(f"CuPy {reason}; pip install 'distai-mpi[cuda12]' (or cuda13)") from None
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = "" if told is None else f" (CUDA_VISIBLE_DEVICES={told!r})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        count, visible = 0, f" ({error})"
    if count == 0:
        raise ConfigError(f"no CUDA device on {platform.node()}{visible}")
    return count
