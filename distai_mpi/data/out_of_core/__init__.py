"""Data sets larger than the memory: shards in a cache on a local disk, read block by block in every pass.

text, arrays ── pieces ──▶ spool ── build ──▶ cache_file: blocks of rows ── prefetch ──▶ stored_rows ──▶ Loader
"""

from .settings import OutOfCore
from .stored_rows import StoredRows

__all__ = ["OutOfCore", "StoredRows"]
