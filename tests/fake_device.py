"""A pretended GPU: arrays that NumPy and Python cannot read by accident, and no more functions than CuPy has.

Whatever would copy between device and host unseen, or would fail in CuPy, fails here; the ways that are meant,
`FakeDevice.put` and `FakeDevice.get`, count what they copy.
"""

from __future__ import annotations

import operator

import numpy as np

from distai_mpi.backend import Device, register

UFUNCS = (
    "abs", "add", "bitwise_xor", "divide", "equal", "exp", "less_equal", "log", "log1p", "maximum", "multiply",
    "right_shift", "sqrt", "square", "subtract", "tanh",
)  # fmt: skip
SCALARS = (bool, int, float, np.generic)


class HiddenTransfer(TypeError):
    """Code for devices did what copies to or from the host without saying so."""


def _fails(name):
    def method(self, *_, **__):
        raise HiddenTransfer(f"{name} of a device array")

    return method


def _inner(x):
    """The memory of a device array, or a scalar; nothing else may meet a device array."""
    if isinstance(x, FakeArray):
        return x.memory
    if isinstance(x, SCALARS):
        return x
    raise HiddenTransfer(f"a device array meets {type(x).__name__}")


def _index(index):
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if not (part is None or part is Ellipsis or isinstance(part, (int, slice, FakeArray))):
            raise HiddenTransfer(f"a device array is indexed by {type(part).__name__}")
    return tuple(part.memory if isinstance(part, FakeArray) else part for part in parts)


def _call(function, *args, out=None, **options):
    if out is not None:
        if not isinstance(out, FakeArray):
            raise HiddenTransfer(f"{function.__name__} writes to {type(out).__name__}")
        options["out"] = out.memory
    result = function(*map(_inner, args), **options)
    return out if out is not None else FakeArray(result)


class Flags:
    """CuPy's flags: read only, and without ``writeable``."""

    __slots__ = ("c_contiguous",)

    def __init__(self, contiguous):
        object.__setattr__(self, "c_contiguous", contiguous)

    def __setattr__(self, name, value):
        raise AttributeError(f"flags.{name} cannot be set")


class FakeArray:
    """An array on the pretended device; ``memory`` is for this file alone."""

    __array_ufunc__ = None  # NumPy's operators give way, and the reflected ones below refuse NumPy's arrays
    __hash__ = None

    def __init__(self, memory):
        self.memory = np.asarray(memory)

    shape = property(lambda self: self.memory.shape)
    ndim = property(lambda self: self.memory.ndim)
    size = property(lambda self: self.memory.size)
    dtype = property(lambda self: self.memory.dtype)
    itemsize = property(lambda self: self.memory.itemsize)
    nbytes = property(lambda self: self.memory.nbytes)
    strides = property(lambda self: self.memory.strides)
    flags = property(lambda self: Flags(self.memory.flags.c_contiguous))
    T = property(lambda self: FakeArray(self.memory.T))

    def __len__(self):
        return len(self.memory)

    def __getitem__(self, index):
        return FakeArray(self.memory[_index(index)])

    def __setitem__(self, index, value):
        self.memory[_index(index)] = _inner(value)

    def reshape(self, *shape):
        return FakeArray(self.memory.reshape(*shape))

    def view(self):
        return FakeArray(self.memory.view())

    def copy(self):
        return FakeArray(self.memory.copy())

    def astype(self, dtype):
        return FakeArray(self.memory.astype(dtype))

    def fill(self, value):
        self.memory.fill(_inner(value))

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return FakeNamespace.sum(self, axis, dtype, out, keepdims)

    def argmax(self, axis=None):
        return FakeNamespace.argmax(self, axis)


HIDDEN = (
    "__array__", "__array_function__", "__array_interface__", "__bool__", "__complex__", "__float__", "__format__",
    "__index__", "__int__", "__iter__", "__contains__", "item", "tolist", "tobytes", "get", "set",
)  # fmt: skip
for _name in HIDDEN:
    setattr(FakeArray, _name, property(_fails(_name)) if _name == "__array_interface__" else _fails(_name))
for _name in ("add", "sub", "mul", "truediv", "and", "or", "xor", "rshift", "lshift", "pow"):
    _plain = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    _inplace = getattr(operator, f"i{_name}")

    def _forward(self, other, function=_plain):
        return _call(function, self, other)

    def _reflected(self, other, function=_plain):
        return _call(function, other, self)

    def _augmented(self, other, function=_inplace):
        function(self.memory, _inner(other))
        return self

    setattr(FakeArray, f"__{_name}__", _forward)
    setattr(FakeArray, f"__r{_name}__", _reflected)
    setattr(FakeArray, f"__i{_name}__", _augmented)
for _name in ("lt", "le", "eq", "ne", "gt", "ge"):
    _plain = getattr(operator, _name)

    def _compare(self, other, function=_plain):
        return _call(function, self, other)

    setattr(FakeArray, f"__{_name}__", _compare)
for _name in ("neg", "abs", "invert"):
    _plain = getattr(operator, _name)

    def _unary(self, function=_plain):
        return _call(function, self)

    setattr(FakeArray, f"__{_name}__", _unary)


def _garbage(shape, dtype):
    """What fresh memory holds: nothing to rely on."""
    plain = np.empty(shape, dtype)
    return np.ndarray(plain.shape, plain.dtype, bytearray(b"\xff" * max(1, plain.nbytes)))


def _filled_reduction(name):
    """CuPy refuses reductions without an identity wherever a dimension is 0."""

    def reduce(a, axis=None, out=None, keepdims=False):
        if 0 in a.shape:
            raise ValueError(f"zero-size array to reduction operation {name} which has no identity")
        return _call(getattr(np, name), a, axis=axis, out=out, keepdims=keepdims)

    return reduce


class FakeNamespace:
    """The functions of CuPy that the package uses, with the arguments that CuPy takes."""

    @staticmethod
    def empty(shape, dtype=float):
        return FakeArray(_garbage(shape, dtype))

    @staticmethod
    def zeros(shape, dtype=float):
        return FakeArray(np.zeros(shape, dtype))

    @staticmethod
    def empty_like(prototype):
        return FakeArray(_garbage(prototype.shape, prototype.dtype))

    @staticmethod
    def zeros_like(a):
        return FakeArray(np.zeros(a.shape, a.dtype))

    @staticmethod
    def arange(start, dtype=None):
        return FakeArray(np.arange(start, dtype=dtype))

    @staticmethod
    def dot(a, b, out=None):
        if not (isinstance(a, FakeArray) and isinstance(b, FakeArray)):
            raise HiddenTransfer("dot takes device arrays")
        if out is not None and np.result_type(a.dtype, b.dtype) != out.dtype:
            raise ValueError("Not supported dtype combination.")
        if out is not None and not out.flags.c_contiguous:
            raise ValueError("Output array must be C-contiguous")
        return _call(np.dot, a, b, out=out)

    @staticmethod
    def asarray(a, dtype=None):
        return FakeArray(np.asarray(_inner(a), dtype))

    @staticmethod
    def broadcast_to(array, shape):
        return _call(np.broadcast_to, array, shape=shape)

    @staticmethod
    def where(condition, x, y):
        return _call(np.where, condition, x, y)

    @staticmethod
    def sum(a, axis=None, dtype=None, out=None, keepdims=False):
        return _call(np.sum, a, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    max = staticmethod(_filled_reduction("max"))
    argmax = staticmethod(_filled_reduction("argmax"))


for _name in UFUNCS:
    _plain = getattr(np, _name)

    def _ufunc(*args, out=None, dtype=None, function=_plain):
        return _call(function, *args, out=out, dtype=dtype)

    setattr(FakeNamespace, _name, staticmethod(_ufunc))
FUNCTIONS = tuple(name for name in vars(FakeNamespace) if not name.startswith("_"))


class FakeDevice(Device):
    """The pretended device; ``transfers`` lists every copy as ("up" or "down", shape, dtype)."""

    name = "fake"
    compiled = False
    block = 64
    xp = FakeNamespace
    array_type = FakeArray

    def __init__(self):
        self.transfers = []
        self.synchronized = 0
        register(self)

    def host_empty(self, shape, dtype):
        return _garbage(shape, dtype)

    def put(self, host, out):
        assert isinstance(host, np.ndarray)
        assert (host.shape, host.dtype) == (out.shape, out.dtype)
        assert out.flags.c_contiguous
        self.transfers.append(("up", host.shape, host.dtype))
        out.memory[...] = host

    def get(self, array, out):
        assert isinstance(out, np.ndarray)
        assert (array.shape, array.dtype) == (out.shape, out.dtype)
        assert array.flags.c_contiguous
        self.transfers.append(("down", array.shape, array.dtype))
        out[...] = array.memory

    def read_only(self, array):
        return array.view()

    def memory(self):
        return 1 << 30, 1 << 30

    def synchronize(self):
        self.synchronized += 1
