"""Features, labels and weights in files that are opened but not read."""

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
    base: ClassVar[None] = None  # of numbers of features, which arrays have none of; see `Parsed`

    def __post_init__(self) -> None:
        for array in self.arrays:
            array.check_numbers()
        check_fit(self.x, self.y, self.weight)

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
        """Whether rows can be read without reading those before them."""
        return all(array.sliceable for array in self.arrays)

    @property
    def mappable(self) -> bool:
        """Whether the arrays can be mapped from the files."""
        return all(array.mappable for array in self.arrays)

    @property
    def files(self) -> set[str]:
        """Paths of the files."""
        return {array.path for array in self.arrays}


def check_fit(x: Any, y: Any, weight: Any) -> None:
    """Raise a DataError unless these can be features, labels and weights of rows; each like an `ArrayFile`."""
    if y.width != 1:
        raise y.error(
            f"has shape {y.shape}, but one label or target per row is needed (for one-hot rows: store y.argmax(axis=1))"
        )
    if weight is not None and (weight.width != 1 or weight.rows != y.rows):
        raise weight.error(f"has shape {weight.shape}, but one weight for each of {y.rows} rows is needed")
    if x.rows != y.rows:
        raise x.error(
            f"has {x.rows} rows, but {y.name} has {y.rows};"
            " every row needs one label, so check that the two belong together"
        )


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
