"""netCDF: packed numbers, missing values, dates, and the classic format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...errors import DataError
from ..array_file import ArrayFile
from ..sources import Source
from .catalog import Entry, open_set
from .columns import Columns
from .variables import Block, Variable, VariablesFile

Array = Any

CLASSIC = (b"CDF\x01", b"CDF\x02")
CLASSIC_5 = b"CDF\x05"
# what netCDF writes where nothing was written, unless a variable names a value of its own (netcdf.h); bytes have none
DEFAULT_FILLS = {
    "i2": -32767,
    "u2": 65535,
    "i4": -2147483647,
    "u4": 4294967295,
    "i8": -9223372036854775806,
    "u8": 18446744073709551614,
    "f4": 9.969209968386869e36,
    "f8": 9.969209968386869e36,
}
SECONDS = {
    **dict.fromkeys(("second", "seconds", "sec", "secs", "s"), 1.0),
    **dict.fromkeys(("minute", "minutes", "min", "mins"), 60.0),
    **dict.fromkeys(("hour", "hours", "hr", "hrs", "h"), 3600.0),
    **dict.fromkeys(("day", "days", "d"), 86400.0),
    **dict.fromkeys(("millisecond", "milliseconds", "msec", "msecs", "ms"), 1e-3),
}
CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "")
FIRST_GREGORIAN = np.datetime64("1582-10-15")


def is_netcdf(file: Any) -> bool:
    """Whether an open HDF5 file is one of netCDF-4."""
    return "_NCProperties" in file.attrs or any(
        "_Netcdf4Dimid" in item.attrs or "_Netcdf4Coordinates" in item.attrs for item in _some(file)
    )


def _some(file: Any) -> Iterator[Any]:
    for key in list(file)[:50]:
        item = file.get(key) if not isinstance(file.get(key, getlink=True), _links()) else None
        if item is not None:
            yield item


def _links() -> tuple[type, ...]:
    from h5py import ExternalLink, SoftLink

    return SoftLink, ExternalLink


@dataclass(frozen=True)
class Packing:
    """How the numbers of a variable are meant (netCDF User's Guide, "Attribute Conventions").

    Attributes:
        dtype: of the numbers once they are unpacked.
        stored: of the numbers as stored, if signs are to be taken otherwise than the file's type says; else None.
        scale, offset: attributes scale_factor and add_offset, or None.
        fills: stored values that stand for missing ones.
        low, high: least and greatest valid stored value, or None.
        gaps: fills and limits in words.
        origin: of dates: what they count from, as datetime64[ms]; None: these are numbers.
        unit: of dates: seconds.
    """

    dtype: np.dtype
    stored: np.dtype | None
    scale: Any
    offset: Any
    fills: tuple[Any, ...]
    low: Any
    high: Any
    gaps: str
    origin: Any = None
    unit: float = 1.0

    @staticmethod
    def of(
        path: str, name: str, attributes: Mapping[str, Any], dtype: np.dtype, default_fill: bool, how: str | None
    ) -> Packing | None:
        """What the ``attributes`` of a variable say; None where its numbers are as they are stored.

        Args:
            default_fill: whether netCDF's own fill value stands for missing ones.
            how: what becomes of dates; see `columns.Columns.dates`.
        """
        numbers = {key: _numbers(path, name, key, value) for key, value in attributes.items() if key in _ATTRIBUTES}
        stored = dtype
        unsigned = _text(attributes.get("_Unsigned", "")).lower()
        if unsigned in ("true", "false") and dtype.kind in "iu":
            stored = np.dtype(f"{'u' if unsigned == 'true' else 'i'}{dtype.itemsize}")
        fills: list[Any] = []
        for key in ("_FillValue", "missing_value"):
            fills += _as_stored(numbers.get(key, ()), stored)
        if default_fill and "_FillValue" not in numbers and dtype.itemsize > 1:
            key = f"{stored.kind}{stored.itemsize}"
            fills += [stored.type(DEFAULT_FILLS[key])] if key in DEFAULT_FILLS else []
        limits = list(numbers.get("valid_range", ())) or [None, None]
        low = numbers["valid_min"][0] if "valid_min" in numbers else limits[0]
        high = numbers["valid_max"][0] if "valid_max" in numbers else limits[-1]
        scale, offset = (numbers[key][0] if key in numbers else None for key in ("scale_factor", "add_offset"))
        origin, unit = _dates(path, name, attributes) if how in ("seconds", "calendar") else (None, 1.0)
        said = [f"{key} {', '.join(map(str, numbers[key]))}" for key in _GAPS if key in numbers]
        if default_fill and fills and "_FillValue" not in numbers:
            said.append(f"netCDF's fill value {fills[-1]}")
        if not said and scale is None and offset is None and stored == dtype and origin is None:
            return None
        found = Packing(
            dtype,
            stored if stored != dtype else None,
            scale,
            offset,
            tuple(fills),
            low,
            high,
            ", ".join(said),
            origin,
            unit,
        )
        unpacked = found.unpack(np.zeros((1, 1), dtype))[0].dtype
        return Packing(unpacked, found.stored, scale, offset, found.fills, low, high, found.gaps, origin, unit)

    def unpack(self, values: Array) -> tuple[Array, Array | None]:
        """Stored ``values`` as they are meant, and which are missing, or None."""
        if self.stored is not None:
            values = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("=")).view(self.stored)
        missing = np.zeros(values.shape, bool)
        for fill in self.fills:
            missing |= np.isnan(values) if fill != fill else values == fill
        if self.low is not None:
            missing |= values < self.low
        if self.high is not None:
            missing |= values > self.high
        if self.scale is not None:
            values = values * self.scale
        if self.offset is not None:
            values = values + self.offset
        if self.origin is not None:
            values, missing = self._dated(values, missing)
        return values, missing if missing.any() else None

    def _dated(self, values: Array, missing: Array) -> tuple[Array, Array]:
        """Counts as dates, to the millisecond."""
        missing = missing | ~np.isfinite(values)
        since = np.where(missing, 0, values).astype(np.float64) * self.unit * 1000
        return self.origin + np.rint(since).astype(np.int64).astype("m8[ms]"), missing


_GAPS = ("_FillValue", "missing_value", "valid_range", "valid_min", "valid_max")
_ATTRIBUTES = ("scale_factor", "add_offset", *_GAPS)


def _numbers(path: str, name: str, key: str, value: Any) -> list[Any]:
    """The numbers in an attribute, in its own type."""
    found = np.asarray(value).ravel()
    if found.dtype.kind not in "biuf" or not found.size:
        raise DataError(f"{path}: {name} has the attribute {key} = {value!r}, which is no number; mend the attribute")
    return list(found.astype(found.dtype.newbyteorder("=")))


def _as_stored(values: Sequence[Any], stored: np.dtype) -> list[Any]:
    """Those of ``values`` that a variable of type ``stored`` can hold, in that type."""
    found = []
    for value in values:
        with np.errstate(over="ignore", invalid="ignore"):
            same = np.asarray(value).astype(stored)
        if (
            np.asarray(value).dtype.itemsize == stored.itemsize
            and np.asarray(value).dtype.kind in "iu"
            and stored.kind in "iu"
        ):
            found.append(np.asarray(value).view(stored)[()])  # _FillValue is written in the signed type
        elif same == value or value != value or stored.kind == "f":
            found.append(same[()])
    return found


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _dates(path: str, name: str, attributes: Mapping[str, Any]) -> tuple[Any, float]:
    """What a variable counts from, and in what unit, in seconds; None: it holds no dates."""
    match = re.fullmatch(r"\s*(\w+)\s+since\s+(.*?)\s*", _text(attributes.get("units", "")))
    if match is None:
        return None, 1.0
    unit, calendar = SECONDS.get(match[1].lower()), _text(attributes.get("calendar", "")).lower()
    origin = _origin(match[2])
    if unit is None or origin is None or calendar not in CALENDARS:
        raise DataError(
            f"{path}: {name} counts '{match[0].strip()}'{calendar and ' in the calendar '}{calendar}, which --dates"
            " does not know; leave --dates out to take the numbers as they are, or leave this variable out"
        )
    if calendar != "proleptic_gregorian" and origin < FIRST_GREGORIAN:
        raise DataError(
            f"{path}: {name} counts from {match[2]}, before the calendar changed; leave --dates out to take the numbers"
            " as they are, or leave this variable out"
        )
    return origin, unit


def note_of_dates(attributes: Mapping[str, Any], how: str | None) -> str:
    """The note on a variable that counts from a date and is taken as it is."""
    units = _text(attributes.get("units", ""))
    if how in ("seconds", "calendar") or not re.match(r"\s*\w+\s+since\s", units):
        return ""
    return f"counts {units}, and is taken as these numbers; --dates seconds or --dates calendar makes dates of it"


def _origin(text: str) -> Any:
    """A date as in ``2000-1-1 00:00:00 UTC`` as datetime64[ms], or None."""
    match = re.fullmatch(
        r"(\d{1,4})-(\d{1,2})-(\d{1,2})(?:[T ]+(\d{1,2}):(\d{1,2})(?::(\d{1,2})(\.\d+)?)?)?"
        r"\s*(Z|UTC|GMT|[-+]\d\d?(?::?\d\d)?)?",
        text,
    )
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    zone = re.fullmatch(r"([-+])(\d\d?):?(\d\d)?", match[8] or "")
    shift = 0 if zone is None else int(f"{zone[1]}1") * (int(zone[2]) * 60 + int(zone[3] or 0))
    try:
        begin = np.datetime64(f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}", "ms")
    except ValueError:
        return None
    return begin + np.timedelta64(round(float(match[7] or 0) * 1000), "ms") - np.timedelta64(shift, "m")


def open_classic(
    path: str, names: Sequence[tuple[str, str]], columns: Columns
) -> Source | VariablesFile | ArrayFile | None:
    """The set in a file of the classic format; see `hdf5.open_hdf5`."""
    with _opened(path) as file:
        entries = []
        for name, data in file.variables.items():
            about = f"{' x '.join(map(str, data.shape))}, {data.data.dtype.newbyteorder('=')}"
            quiet = name in file.dimensions
            entries.append(Entry(name, partial(_variable, path, name, data, columns), name, about, quiet))
        return open_set(path, entries, names, columns)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    from scipy.io import netcdf_file

    try:
        with netcdf_file(path, "r", mmap=False) as file:
            yield file
    except DataError:
        raise
    except Exception as error:  # SciPy tells damage by whatever it meets
        raise DataError(f"{path}: damaged or unreadable netCDF file ({error!r}); copy it again") from None


def _variable(path: str, name: str, data: Any, columns: Columns) -> Variable:
    stored = data.data.dtype.newbyteorder("=")
    shape = data.shape
    if stored.kind == "S":
        return ClassicVariable(path, name, shape[:-1] if len(shape) > 1 else shape, np.dtype("U1"))
    packing = Packing.of(path, name, data._attributes, stored, True, columns.dates)
    if len(shape) > 1 and columns.transpose:
        shape = (shape[-1], *shape[:-1])
    note = note_of_dates(data._attributes, columns.dates)
    dtype, gaps = (stored, "") if packing is None else (packing.dtype, packing.gaps)
    return ClassicVariable(path, name, shape, dtype, packing, columns.transpose, gaps=gaps, note=note)


@dataclass(frozen=True)
class ClassicVariable(Variable):
    """A variable of a file of the classic format, which is read whole."""

    packing: Packing | None = None
    transpose: bool = False

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """See `variables.Variable.blocks`."""
        with _opened(self.path) as file:
            values = np.array(file.variables[self.name].data)
        if self.dtype.kind == "U":
            text = [b"".join(np.atleast_1d(row).tolist()).decode("utf-8", "replace").rstrip("\0 ") for row in values]
            yield Block(start, np.array(text)[start:stop, None])
            return
        if self.transpose and values.ndim > 1:
            values = np.moveaxis(values, -1, 0)
        rows = values[start:stop].reshape(stop - start, self.width)
        rows = rows.astype(rows.dtype.newbyteorder("="))
        yield Block(start, rows) if self.packing is None else Block(start, *self.packing.unpack(rows))
