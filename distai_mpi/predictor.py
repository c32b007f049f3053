"""A trained model with its preprocessing, in one process without MPI."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import data
from .data.encoding import Encoding, restored
from .data.feature_blocks import feature_blocks, features_of
from .data.loader import Loader
from .data.missing import apply_fill
from .data.readers.chunk import held_sparse
from .data.readers.levels import levels_of_values
from .data.sparse_rows import is_sparse
from .data.spec import Spec
from .data.wording import worded_errors
from .errors import ConfigError, DataError
from .models import Abilities
from .models.storage import load_model
from .settings import called

Array = Any
MODEL = "model.npz"
KEPT = ("label", "weight", "columns", "drop", "dates", "day_first", "header", "format", "variable", "transpose")


def load(path: str | os.PathLike, model: Any = None) -> Predictor:
    """The model that a run left in ``path``, the folder of ``--out`` or its model.npz.

    Args:
        path: folder or file.
        model: the run's own model, where it is none of this package's: an object as `fit` took it.

    Raises:
        DataError: there is no such model, or it is of another kind than ``model``.
    """
    name = os.fspath(path)
    return Predictor(*load_model(os.path.join(name, MODEL) if os.path.isdir(name) else name, model))


@dataclass(frozen=True)
class Predictor:
    """A model, its parameters, and what was done to the features of its training rows; loads no MPI.

    Rows ``x`` are an array of shape (rows, features) in the order of training, of any real type, or a sparse one of
    SciPy's; or, where the training rows had columns with names, a table: a mapping of names to columns, a DataFrame, or
    an array with named fields, in any order and perhaps with further columns.  Values are scaled, filled and
    standardized as in training.

    Attributes:
        model, params: the model and its parameters, shape (layout.size,), read-only.
        kept: what the run kept besides, as `models.load_model` gives it.
    """

    model: Any
    params: Array
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> Array | None:
        """Labels of the classes in the order of `predict_proba`'s columns, shape (classes,); None of values."""
        loss = getattr(self.model, "loss_function", None)
        labels = classes_of(self.kept)
        if labels is not None:
            array = np.array(labels)
            return array.astype(np.int64) if array.dtype.kind == "f" and (array == array.round()).all() else array
        return np.arange(max(2, self.model.widths[-1])) if loss is not None and loss.classifies else None

    @property
    def column_names(self) -> tuple[str, ...] | None:
        """Names of the columns that rows are made of, in the order of training; None: they had none."""
        names = self.kept.get("column_names")
        return tuple(names) if names else None

    def predict(self, x: Any) -> Array:
        """Labels, or the values of a regression, shape (rows,).

        Raises:
            DataError: rows do not fit the model, a column is missing or holds no numbers, a value is not finite.
        """
        return self.answer(self.rows_of(x), "predict")

    def predict_proba(self, x: Any) -> Array:
        """Probabilities of the classes, shape (rows, classes), in the model's dtype; rows as in `predict`.

        Raises:
            ConfigError: the model gives none.
            DataError: as `predict`.
        """
        return self.answer(self.rows_of(x), "predict_proba")

    def decision_function(self, x: Any) -> Array:
        """Margins of two classes or values, shape (rows,), or logits, shape (rows, classes); as `predict_proba`."""
        return self.answer(self.rows_of(x), "decision_function")

    def rows_of(self, x: Any) -> data.ShardedDataset:
        """``x`` as rows with the preprocessing of training."""
        encoding = restored(self.kept)
        if encoding is not None and not is_sparse(x):
            return self._encoded(encoding, x)
        values = x if is_sparse(x) else self._named(x) if _is_table(x) else np.asarray(x)
        if values.ndim > 2:  # images
            values = values.reshape(len(values), -1)
        fill = self.kept.get("fill")
        columns = self.features if fill is None else fill.size
        if values.ndim != 2 or values.shape[1] != columns:
            more = " (one row: x.reshape(1, -1))" if values.ndim == 1 and values.size == columns else ""
            raise DataError(f"x has shape {values.shape}, but the model takes (rows, {columns}){more}")
        scale = self.kept.get("byte_scale") if values.dtype == np.uint8 else None
        shard = features_of(values, scale=1.0 if scale is None else scale, missing=fill is not None)
        return self.prepared(shard if fill is None else apply_fill(shard, self._fill()))

    @property
    def features(self) -> int:
        """Features of a row as the model takes it, indicators of missing values included."""
        widths = getattr(self.model, "widths", None)
        if widths is None:
            raise ConfigError("a model of your own: give its predict the parameters and rows, or give it widths[0]")
        return widths[0]

    def prepared(self, shard: data.ShardedDataset) -> data.ShardedDataset:
        """Rows that were read, scaled and standardized as in training."""
        check_features(shard.name, shard, self.model)
        return scaled(shard, self.kept)

    def blocks(self, spec: Spec, how: str = "predict", **columns: Any) -> Iterator[tuple[Array, tuple[str, ...]]]:
        """Answers for the rows of files, in their order and block by block; ``how`` names a method of this class.

        With each block come notes on the data.  ``columns``: how tables are read, where not as in training; see
        `data.Columns`.
        """
        options = as_trained(self.kept | {"label": None, "weight": None}, columns, self.model)
        filled = "fill" in options or getattr(options["encoding"], "fill", None) is not None
        if not filled:  # every row gets a prediction: none is dropped
            options["missing"] = "refuse"
        self._check(how)
        with worded_errors():
            for shard in feature_blocks(spec, **options):
                yield self.answer(self.prepared(shard), how), shard.notes

    def answer(self, shard: data.ShardedDataset, how: str) -> Array:
        """The method ``how`` for the rows of ``shard``, which are `prepared`."""
        self._check(how)
        target = getattr(self.model, "target_dtype", np.int64)
        sparse, dtypes = Abilities.of(self.model).sparse, {"dtype": self.model.dtype, "target_dtype": target}
        loader = Loader(shard, rank=0, ranks=1, global_batch_size=1, seed=0, **dtypes, sparse=sparse)
        parts = [self._answer(batch.x, how) for batch in loader.sequential()]
        return np.concatenate(parts) if parts else self._answer(np.empty((0, self.features), self.model.dtype), how)

    def _answer(self, x: Array, how: str) -> Array:
        if how == "predict":
            codes = self.model.predict(self.params, x)
            return codes if classes_of(self.kept) is None else self.classes[codes]  # type: ignore[index]
        outputs = np.array(self.model.outputs(self.params, x))
        if how == "decision_function":
            return outputs[:, 0] if outputs.shape[1] == 1 else outputs
        if outputs.shape[1] == 1:  # σ(z), and 1 - σ(z) = σ(-z) without cancellation
            outputs = np.concatenate([-outputs, outputs], axis=1)
            return np.exp(-np.logaddexp(0, -outputs))
        outputs -= outputs.max(axis=1, keepdims=True)
        np.exp(outputs, out=outputs)
        return outputs / outputs.sum(axis=1, keepdims=True)

    def _check(self, how: str) -> None:
        if how == "predict":
            return
        proba, decision = called("predict_proba", "--proba"), called("decision_function", "--decision")
        asked = proba if how == "predict_proba" else decision
        if not hasattr(self.model, "outputs"):
            raise ConfigError(f"{asked}: the model is your own and has no method outputs(w, x); only predict works")
        name = self.model.loss_function.name
        if how == "predict_proba" and name not in ("logistic", "softmax"):
            raise ConfigError(f"{asked}: a model of the {name} loss gives no probabilities; use {decision}")

    def _encoded(self, encoding: Encoding, x: Any) -> data.ShardedDataset:
        """`rows_of` a model whose columns hold categories or documents."""
        columns = list(self._columns(x).values()) if _is_table(x) else _columns_of(x)
        plain, kinds = [column for column in encoding.columns if not column.of], dict(self.kept["encoded"])
        if len(columns) != len(plain):
            raise DataError(f"x has {len(columns)} columns, but the model takes {len(plain)}: give them as in training")
        rows, levels = np.empty((len(columns[0]), len(plain))), {}
        for i, (column, of) in enumerate(zip(columns, plain, strict=True)):
            if of.name in kinds:
                levels[i], rows[:, i] = levels_of_values(column, kinds[of.name])
                continue
            try:
                rows[:, i] = np.asarray(column, np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"x: column {of.name!r} holds {error.args[0]}; the model takes numbers there") from None
        found = encoding.rows(rows, levels)
        shard = features_of(held_sparse(found, encoding.features, 0), missing="fill" in self.kept)
        if "fill" in self.kept:
            dense = replace(shard.dataset, x=shard.dataset.x.toarray())
            shard = apply_fill(replace(shard, dataset=dense), self._fill())
        return self.prepared(shard)

    def _fill(self) -> data.Fill:
        return data.Fill(self.kept["fill"], self.kept["indicators"])

    def _columns(self, table: Any) -> dict[str, Array]:
        """The columns of ``table`` that the model was trained on, by name and in their order."""
        wanted = self.column_names
        if wanted is None:
            raise DataError(
                "the model was trained on columns without names: give x as an array of shape (rows, features)"
            )
        given = [str(name) for name in _names(table)]
        for name in wanted:
            if name not in given:
                near = difflib.get_close_matches(name, given, n=1)
                raise DataError(f"x has no column {name!r}{f': did you mean {near[0]!r}?' if near else ''}")
        return {name: np.asarray(table[name]) for name in wanted}

    def _named(self, table: Any) -> Array:
        """The numbers in ``table`` that the model takes, shape (rows, columns)."""
        columns = self._columns(table)
        for name, column in columns.items():
            if column.dtype.kind not in "biuf":
                raise DataError(
                    f"x: column {name!r} holds {column.dtype}, not numbers; tables of text and dates are read from"
                    " files: distai-mpi predict RUN FILE.csv"
                )
        return np.column_stack(list(columns.values()))


def _columns_of(x: Any) -> list[Array]:
    """The columns of an array, or of a list of rows."""
    values = np.asarray(x, object)
    if values.ndim != 2:
        raise DataError(f"x has shape {values.shape}: give rows of equally many values, or a table")
    return list(values.T)


def _is_table(x: Any) -> bool:
    return hasattr(x, "keys") or hasattr(x, "columns") or getattr(getattr(x, "dtype", None), "names", None) is not None


def _names(table: Any) -> Any:
    if hasattr(table, "columns"):
        return table.columns
    return table.keys() if hasattr(table, "keys") else table.dtype.names


def as_trained(extra: dict[str, Any], given: dict[str, Any], model: Any) -> dict[str, Any]:
    """How the tables of a model that keeps ``extra`` are read, but for what flags, ``given``, say; for `data.load`."""
    flags = dict(given)
    if "features" in flags:
        flags["variable"] = flags.pop("features")
    options = {name: extra[name] for name in KEPT if extra.get(name) is not None}
    options |= {name: value for name, value in flags.items() if value is not None}
    options["transpose"] = bool(given.get("transpose") or extra.get("transpose"))
    names = extra.get("column_names")
    options |= {
        "required": names and tuple(names),
        "date_orders": tuple((str(name), bool(first)) for name, first in extra.get("date_orders", ())),
        "label_name": None if given.get("label") is not None else extra.get("label_name"),
        "row_names": tuple(extra.get("row_names") or ()),
        "encoded": tuple((str(name), str(kind)) for name, kind in extra.get("encoded") or ()),
        "encoding": restored(extra),
        "missing": extra.get("missing", "refuse"),
        "dtype": held_dtype(model, extra),
        "features": model.widths[0],
        "base": extra.get("base"),
    }
    if "fill" in extra:
        options["fill"] = data.Fill(extra["fill"], extra["indicators"])
        options["features"] = extra["fill"].size
    return options


def classes_of(extra: dict[str, Any]) -> list[Any] | None:
    """The labels that the codes of a model that keeps ``extra`` stand for; None of values."""
    if extra.get("classes") is None and extra.get("plus_minus"):  # of models before classes were kept
        return [-1.0, 1.0]
    return extra.get("classes")


def held_dtype(model: Any, extra: dict[str, Any]) -> Any:
    """The type in which text is held for ``model``: its own, or float64 where features are changed before."""
    return np.dtype(np.float64) if "mean" in extra or "fill" in extra else model.dtype


def check_features(name: str, shard: Any, model: Any) -> None:
    """Raise `DataError` unless rows have as many features as ``model`` takes; one or two more may be other columns."""
    more = shard.features - model.widths[0]
    if more:
        named = [called(name) for name in ("label", "weight")]
        advice = f"; in a table, name the column of the labels with {named[0]}, and that of weights with {named[1]}"
        raise DataError(
            f"{name}: rows have {shard.features} features, but the model takes {model.widths[0]}"
            f"{advice if more in (1, 2) else ''}"
        )


def scaled(shard: Any, extra: dict[str, Any]) -> Any:
    """``shard`` with bytes among its features scaled, and all standardized, as in training."""
    scale = extra.get("byte_scale")
    if scale is not None and shard.dataset.x.dtype == "uint8":  # whatever the shape they come in
        shard = replace(shard, dataset=replace(shard.dataset, scale=scale))
    if "mean" in extra:
        standard = data.Standard(extra["mean"], extra["deviation"])
        shard = replace(shard, dataset=replace(shard.dataset, standard=standard))
    return shard
