"""Shards of data sets: which rank gets which rows, and whether they are read, scattered, or held once per node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import DataError
from . import scatter
from .checks import first_not_finite
from .classes import without_labels
from .dataset import Dataset
from .encoding import Encoding
from .labels import Label, are_truths, merge, summarize
from .parsed import Parsed
from .partition import Partition, even_range
from .permutation import Permutation
from .readers.columns import Columns, Roles
from .sharded import ShardedDataset, Shuffle, Transfer, cuts_of, sum_over_ranks
from .sharding_plan import ShardingPlan
from .sources import Source


@dataclass(frozen=True)
class Sharder:
    """Makes `ShardedDataset`s of sources; its methods are collective."""

    comm: Any
    names: dict[str, str]  # what a user calls the data of each set
    sources: dict[str, Source | Parsed]
    visible: Sequence[bool]
    distribute: str | None
    fractions: dict[str, float]  # of the training source's rows that make up other sets
    seed: int
    shards: Partition | None
    memory_limit: int
    chunk_bytes: int
    columns: Columns

    def shard(self, shuffle: Shuffle) -> dict[str, ShardedDataset]:
        """The sets by name.  Raises MemoryError on all ranks where rows cannot be held whole."""
        shards: dict[str, ShardedDataset] = {}
        bring = self._whole if shuffle == "global" else self._own
        plans = [(source, *self.plan(name, source, shuffle)) for name, source in self.sources.items()]
        # The first source comes last: where a node cannot hold it all rows go another way, and none are spent yet.
        brought = [bring(source, plan, plan is plans[0][2]) for source, _, plan in reversed(plans)]
        for (source, names, plan), (dataset, transfer) in zip(plans, reversed(brought), strict=True):
            self._check_values(names[0], source, plan, dataset, shuffle)
            ordered = shuffle == "local" or (isinstance(source, Parsed) and source.entries is not None)
            held = (dataset, shuffle, transfer, ordered)
            sets = [self._shard(name, plan, i, *held) for i, name in enumerate(names)]
            labels = merge(shard.labels for shard in sets)  # a split may leave a class to one of the sets alone
            known = self.known(source)
            for name, shard in zip(names, sets, strict=True):
                shard = replace(shard, labels=replace(labels, rows=shard.rows), **known)
                shards[name] = self.labelled(names[0], shard)
        return shards

    def known(self, source: Source | Parsed) -> dict[str, Any]:
        """Fields of a `ShardedDataset` that describe the table of its rows."""
        file = source.file if isinstance(source, Parsed) else source
        roles: Roles | None = getattr(file, "roles", None)
        columns = None if roles is None else roles.names
        notes = source.notes if isinstance(source, Parsed) else getattr(source, "notes", ())
        words: tuple[Label, ...] | None = source.label_names if isinstance(source, Parsed) else None
        if isinstance(source, Source) and source.y.stored.kind == "b":
            words = False, True
        known = {
            "base": source.base,
            "column_names": columns,
            "feature_names": getattr(file, "feature_names", columns),
            "label_name": None if roles is None else roles.label_name,
            "date_orders": getattr(file, "date_orders", ()),
            "row_names": () if roles is None else roles.row_names,
            "classes": words,
            "encoded": tuple(getattr(file, "encoded", ())),
            "notes": tuple(notes),
        }
        encoding = source.encoding if isinstance(source, Parsed) else None
        return known if encoding is None else known | _of_encoding(file, encoding, known)

    def _may_lack_labels(self, name: str) -> bool:
        """Whether the rows of set ``name`` may have no labels: test rows may."""
        return name == "test" or self.columns.unlabelled

    def _none(self, y: Any) -> bool:
        """Whether the labels ``y`` of each rank are missing without exception; collective."""
        return all(self.comm.allgather_object(y.dtype.kind == "f" and bool(np.isnan(y).all())))

    def labelled(self, name: str, shard: ShardedDataset) -> ShardedDataset:
        """``shard``, from the source of set ``name``, whose rows all have labels, or none has and none is needed."""
        labels = shard.labels
        if shard.classes is not None:
            shard = replace(shard, labels=replace(labels, words=not are_truths(shard.classes)))
        if labels.missing == 0:
            return shard
        if self._may_lack_labels(name) and labels.low > labels.high:
            return without_labels(shard)
        raise DataError(
            f"{shard.name}: rows without a label ({labels.missing:,}); give each row one, or leave such rows out"
            " (--missing drop)"
        )

    def plan(self, name: str, source: Source | Parsed, shuffle: Shuffle) -> tuple[list[str], ShardingPlan]:
        """The sets that come from the source of set ``name``, and how its rows are ordered and cut up."""
        partition = self.shards or Partition.even(self.comm.size)
        if name != "train":
            return [name], ShardingPlan(None, (source.rows,), partition)
        names, sets, left = [name], [], source.rows
        for other, fraction in self.fractions.items():
            if fraction > 0 and left > 1:
                sets.append(min(left - 1, max(1, round(source.rows * fraction))))
                names.append(other)
                left -= sets[-1]
        order = Permutation(source.rows, self.seed, "rows") if shuffle == "local" or sets else None
        return names, ShardingPlan(order, (left, *sets), partition)

    def _whole(self, source: Source | Parsed, plan: ShardingPlan, spent: bool) -> tuple[Dataset, Transfer]:
        """All rows: mapped, in memory of the node, or a copy; ``spent``: see `spread.spread_sparse`."""
        if isinstance(source, Source) and source.mappable and all(self.visible):
            with self.comm.agreed():
                dataset = scatter.map_whole(source)
            return dataset, "read"
        try:
            return scatter.hold_on_nodes(source, plan, self.comm, self.visible, self.chunk_bytes, spent), "node"
        except MemoryError as error:
            most = max(self.comm.allgather_object(self.comm.node.size))
            if source.nbytes * most > self.memory_limit:
                raise MemoryError(f"{error}, and {most} copies of {source.nbytes} bytes are too much") from None
            return scatter.hold_copies(source, plan, self.comm, self.visible, self.chunk_bytes, spent), "copy"

    def _own(self, source: Source | Parsed, plan: ShardingPlan, spent: bool) -> tuple[Dataset, Transfer]:
        """The rows of this rank's shard: read, sent by those who parsed them, or scattered."""
        if isinstance(source, Parsed):
            way: Transfer = "scatter" if self.distribute == "scatter" else "read"
            return scatter.send_own(source, plan, self.comm, self.chunk_bytes, spent), way
        if self.distribute == "read" or (self.distribute is None and source.sliceable and all(self.visible)):
            with self.comm.agreed():
                dataset = scatter.read_own(source, plan, self.comm.rank, self.chunk_bytes)
            return dataset, "read"
        return scatter.from_root(source, plan, self.comm, self.chunk_bytes), "scatter"

    def _check_values(
        self, name: str, source: Source | Parsed, plan: ShardingPlan, dataset: Dataset, shuffle: Shuffle
    ) -> None:
        """Raise a DataError on all ranks if any value is not finite; each rank looks at its part.

        NaN is accepted where it stands for a missing value.
        """
        if isinstance(source, Parsed):
            return  # looked at when it was read
        rank, size = self.comm.rank, self.comm.size
        start, stop = (0, dataset.rows) if shuffle == "local" else even_range(dataset.rows, size, rank)
        found = []
        keeps = self.columns.keeps_missing, self._may_lack_labels(name) and self._none(dataset.y[start:stop])
        arrays = ((source.x, dataset.x), (source.y, dataset.y.reshape(-1, 1)))
        for (array, values), keeps_missing in zip(arrays, keeps, strict=True):
            bad = first_not_finite(values[start:stop], keeps_missing)
            if bad is not None:
                row, column, value = bad
                row = int(plan.rows_of(rank)[row]) if shuffle == "local" else start + row
                found.append((array, row, column, value))
        everywhere = [bad for part in self.comm.allgather_object(found) for bad in part]
        if everywhere:
            array, row, column, value = min(everywhere, key=lambda bad: (bad[0].name, bad[1:3]))
            raise array.not_finite(row, column, value)

    def _shard(
        self,
        name: str,
        plan: ShardingPlan,
        which: int,
        dataset: Dataset,
        shuffle: Shuffle,
        transfer: Transfer,
        ordered: bool,
    ) -> ShardedDataset:
        """This rank's shard of set ``which``; ``ordered``: see `ShardedDataset`."""
        rank, counts, first = self.comm.rank, plan.counts(which), plan.first(which)
        if shuffle == "local":
            kept = sum(plan.counts(earlier)[rank] for earlier in range(which))
            dataset = dataset.part(kept, kept + counts[rank])
            y, weight = dataset.y, dataset.weight
        else:
            order = plan.order
            cuts = cuts_of(dataset, order, first, plan.sets[which], plan.partition)
            counts, (start, stop) = tuple(b - a for a, b in pairwise(cuts)), cuts[rank : rank + 2]
            rows: Any = slice(first + start, first + stop)
            if order is not None and not ordered:
                rows = order.positions(first + start, first + stop)
            y, weight = dataset.y[rows], None if dataset.weight is None else dataset.weight[rows]
        labels = merge(self.comm.allgather_object(summarize(y, dataset.features)))
        total = sum_over_ranks(weight, self.comm)
        where = (plan.order, first, transfer)
        shard = ShardedDataset(dataset, counts, rank, shuffle, labels, *where, self.names[name], total, self.shards)
        return replace(shard, ordered=ordered)


def _of_encoding(file: Any, encoding: Encoding, known: dict[str, Any]) -> dict[str, Any]:
    """Those of the fields that are ``known`` of a table which are others where its columns are encoded."""
    left = {column.name for column in encoding.columns}
    lost = tuple(name for name, _ in known["encoded"] if name not in left)
    names = known["column_names"]
    return {
        "encoding": encoding,
        "encoded": tuple((name, kind) for name, kind in known["encoded"] if name in left),
        "column_names": None if names is None else tuple(name for name in names if name not in lost),
        "row_names": (*known["row_names"], *lost),
        "feature_names": None if file.feature_names is None else encoding.feature_names,
    }
