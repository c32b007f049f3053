"""The MPI library in use, as far as it tells about itself; MPI must be running."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Library:
    """Name and version of the MPI library, how it sends messages, and whether it takes GPU memory."""

    name: str
    standard: str
    bindings: str  # the version of mpi4py
    transport: str
    gpu_memory: str  # "yes", "no" or "unknown"


def library() -> Library:
    """Describe the library that mpi4py has loaded."""
    import mpi4py
    from mpi4py import MPI

    name, version = MPI.get_vendor()
    shared_object = _loaded(MPI)
    return Library(
        name=f"{name} {'.'.join(map(str, version))}",
        standard=f"MPI {MPI.Get_version()[0]}.{MPI.Get_version()[1]}",
        bindings=mpi4py.__version__,
        transport=_transport(name, MPI.Get_library_version(), shared_object),
        gpu_memory=_gpu_memory(shared_object),
    )


def _loaded(MPI: Any) -> ctypes.CDLL | None:
    """The MPI library already loaded in this process, for symbols that mpi4py does not offer."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            files = {line.split(maxsplit=5)[-1].strip() for line in maps if "/" in line}
    except OSError:
        return None
    for path in sorted(files):
        if os.path.basename(path).startswith(("libmpi.so", "libmpich.so", "libmpi_")):
            return ctypes.CDLL(path)
    return None


def _transport(name: str, version: str, shared_object: ctypes.CDLL | None) -> str:
    if name == "Open MPI":
        pml = _open_mpi_component(shared_object, "pml")
        if pml == "ob1":
            chosen = os.environ.get("OMPI_MCA_btl", "any")
            return f"PML ob1 over BTLs '{chosen}' (to see them at work: OMPI_MCA_btl_base_verbose=30)"
        if pml == "cm":
            return f"PML cm over MTL {_open_mpi_component(shared_object, 'mtl') or 'unknown'}"
        return f"PML {pml}" if pml else "unknown (to see it: OMPI_MCA_pml_base_verbose=10)"
    for line in version.splitlines():
        label, _, device = line.partition("Device:")
        if label.startswith("MPICH") and device:
            return device.strip()
    return "unknown"


def _open_mpi_component(shared_object: ctypes.CDLL | None, framework: str) -> str | None:
    """The component of ``framework`` that Open MPI has selected, None if it cannot be read.

    Open MPI has no call for this, but every component starts with a public structure
    (``mca_base_component_t`` of opal/mca/mca.h, unchanged since 2.0): int[3], char[16] project, int[3],
    char[32] framework, int[3], char[64] component.  The two names we know guard against another layout.
    """
    symbol = {"pml": "mca_pml_base_selected_component", "mtl": "ompi_mtl_base_selected_component"}[framework]
    try:
        raw = (ctypes.c_char * 148).in_dll(shared_object, symbol).raw  # type: ignore[arg-type]
        if framework == "mtl":  # this one is a pointer
            raw = ctypes.string_at(int.from_bytes(raw[:8], "little"), 148)
    except (AttributeError, TypeError, ValueError):
        return None
    project, kind, component = (raw[at:end].partition(b"\0")[0] for at, end in ((12, 28), (40, 72), (84, 148)))
    return component.decode() if (project, kind) == (b"ompi", framework.encode()) else None


def _gpu_memory(shared_object: ctypes.CDLL | None) -> str:
    """The answer of ``MPIX_Query_cuda_support``, which Open MPI and MPICH offer."""
    try:
        return "yes" if shared_object.MPIX_Query_cuda_support() else "no"  # type: ignore[union-attr]
    except AttributeError:
        return "unknown"
