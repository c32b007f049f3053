"""Features, labels and weights in files: what can be known of a data set before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import DataError
from .array_file import ArrayFile


@dataclass(frozen=True)
class Source:
    """Features, labels and perhaps weights in files.

    Raises a DataError where they do not belong together.
    """

    x: ArrayFile
    y: ArrayFile
    weight: ArrayFile | None = None
    base: ClassVar[int] = 1  # of numbers of features, which arrays have none of; see `Parsed`

    def __post_init__(self) -> None:
        if self.y.width != 1:
            raise self.y.error(
                f"has shape {self.y.shape}, but one label or target per row is needed"
                " (for one-hot rows: store y.argmax(axis=1))"
            )
        if self.weight is not None and (self.weight.width != 1 or self.weight.rows != self.y.rows):
            raise self.weight.error(
                f"has shape {self.weight.shape}, but one weight for each of {self.y.rows} rows is needed"
            )
        if self.x.rows != self.y.rows:
            raise self.x.error(
                f"has {self.x.rows} rows, but {self.y.name} has {self.y.rows};"
                " every row needs one label, so check that the two belong together"
            )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.x.rows

    @property
    def features(self) -> int:
        """Features of a row."""
        return self.x.width

    @property
    def name(self) -> str:
        """Array and file, for messages."""
        return f"{self.x.name} of {self.x.path}"

    def error(self, message: str) -> DataError:
        """A DataError that names file and array of the features."""
        return self.x.error(message)

    @property
    def scale(self) -> float:
        """What features are multiplied by; see `ArrayFile.scale`."""
        return self.x.scale

    @property
    def arrays(self) -> tuple[ArrayFile, ...]:
        """x, y and, where there is one, weight."""
        return (self.x, self.y) if self.weight is None else (self.x, self.y, self.weight)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in memory."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def sliceable(self) -> bool:
        """Whether any rows can be had without reading the others."""
        return all(array.sliceable for array in self.arrays)

    @property
    def mappable(self) -> bool:
        """Whether the files' own bytes can serve as the arrays in memory."""
        return all(array.mappable for array in self.arrays)

    @property
    def files(self) -> set[str]:
        """Paths of the files."""
        return {array.path for array in self.arrays}


def check_pair(train: Any, test: Any) -> None:
    """Raise a DataError unless ``test`` has the same features as ``train``; each a `Source` or the like."""
    if train.features != test.features:
        raise test.error(
            f"has {test.features} features a row, but {train.name} has {train.features};"
            " training and test data must have the same"
        )
    if (
        train.scale != test.scale
        and isinstance(train, Source)
        and isinstance(test, Source)
        and train.x.stored == test.x.stored
    ):
        raise test.x.error(
            f"has shape {test.x.shape}, but {train.x.name} of {train.x.path} has {train.x.shape}: only images"
            " (three axes) are scaled to [0, 1], so store both in the same way"
        )


def check_names(train: Any, test: Any) -> None:
    """Raise a DataError where both tables name their features, and not alike."""
    ours, theirs = (getattr(file, "feature_names", None) for file in (train, test))
    if ours is not None and theirs is not None and ours != theirs and len(ours) == len(theirs):
        column = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        raise DataError(
            f"{test.path}: feature {column} is called {theirs[column]}, but {ours[column]} in {train.path};"
            " store the same columns in the same order"
        )
