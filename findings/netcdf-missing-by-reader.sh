#!/usr/bin/env bash
# netCDF4 1.7.5.1 and xarray 2026.9.0: which values of a netCDF file are missing depends on the reader.  netCDF4 masks what
# lies outside valid_range and what has the type's default fill value (9.96921e36 for float32: elements that were never
# written); xarray, with either engine, decodes scale_factor, add_offset and _FillValue alone and hands out both as
# numbers: a temperature of 293.15 K from a count that the file calls invalid, and 9.96921e36.
# Way out: apply valid_min, valid_max and valid_range, and netCDF4.default_fillvals, oneself.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q netCDF4==1.7.5.1.post1 xarray==2026.9.0 h5netcdf==1.8.2 h5py==3.16.0 numpy==2.4.6
seen=$(venv/bin/python - <<'P'
import netCDF4
import numpy as np
import xarray

with netCDF4.Dataset("rows.nc", "w") as file:
    file.createDimension("row", 4)
    packed = file.createVariable("packed", "i2", ("row",), fill_value=-999)
    packed.scale_factor, packed.add_offset, packed.valid_range = 0.5, 100.0, np.array([0, 1000], "i2")
    packed.set_auto_maskandscale(False)
    packed[:] = [0, 500, 2000, -999]
    plain = file.createVariable("plain", "f4", ("row",))
    plain[0:3] = [1.0, 2.0, 3.0]  # the last one is never written
with netCDF4.Dataset("rows.nc") as file:
    print("netCDF4", [int(np.ma.count_masked(file[name][:])) for name in ("packed", "plain")])
for engine in ("netcdf4", "h5netcdf"):
    with xarray.open_dataset("rows.nc", engine=engine) as file:
        missing = [int(np.isnan(file[name].values).sum()) for name in ("packed", "plain")]
        print("xarray", engine, missing, float(file.packed[2]), f"{float(file.plain[3]):.5e}")
P
)
echo "$seen"
expected="netCDF4 [2, 1]
xarray netcdf4 [1, 0] 1100.0 9.96921e+36
xarray h5netcdf [1, 0] 1100.0 9.96921e+36"
[ "$seen" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected" >&2; exit 1; }
