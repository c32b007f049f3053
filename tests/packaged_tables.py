"""CSV files that come inside other Python packages: each is loaded by the command's flags, and compared with pandas.

    python tests/packaged_tables.py [--only TEXT]
    python tests/packaged_tables.py --train [--only TEXT]

The packages (scikit-learn, statsmodels, vega_datasets, river, lifelines, matplotlib) and pandas are taken from the
environment this runs in; which are missing is told.  ``packaged_tables.toml`` says for each file which flags it takes,
besides --drop at most two, how pandas reads it and, of a file of labels alone, where its features are.  A file is right
where the features are pandas' to the last bit (values filled in: to 1e-12) and labels are pandas', words as classes
that are told apart alike.

The exit status is 0 only if all packages are there and every file is right.

With --train each file is trained on for two iterations by --label and --missing mean alone, beside --model (linear
where the label is a number, else softmax) and --optimizer lbfgs; the label is the last column, unless
``packaged_tables.toml`` names another one.  Those that are refused are listed; the exit status is 0 if at least
`FEWEST_TRAINED` are not.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from alone import Alone

# Where each package has its tables, and what it is called on PyPI.
FOLDERS = {
    "sklearn/datasets": "scikit-learn",
    "statsmodels/datasets": "statsmodels",
    "vega_datasets": "vega_datasets",
    "river": "river",
    "lifelines": "lifelines",
    "matplotlib": "matplotlib",
}
MOST_FLAGS = 2  # besides --drop
FEWEST_TRAINED = 95  # files
TRAINING = ("--missing", "mean", "--optimizer", "lbfgs", "--max-iter", "2", "-q")
FIXED = ("--test-fraction", "0", "--dtype", "float64", "--model", "linear")


class Wrong(Exception):
    """What was loaded is not what pandas reads."""


def folders() -> tuple[dict[str, Path], list[str]]:
    """Where the tables of each package are, by the names above, and the packages that are missing."""
    found, missing = {}, []
    for folder, package in FOLDERS.items():
        spec = importlib.util.find_spec(folder.split("/")[0])
        if spec is None or spec.origin is None:
            missing.append(package)
        else:
            found[folder] = Path(spec.origin).parent.joinpath(*folder.split("/")[1:])
    return found, missing


def tables() -> Iterator[tuple[str, Path]]:
    """The CSV files, compressed ones too, by a name that does not depend on where packages lie."""
    for folder, path in folders()[0].items():
        for file in sorted(path.rglob("*.csv*")):
            yield f"{folder}/{file.relative_to(path).as_posix()}", file


def loaded(path: Path, flags: list[str], features: Path | None) -> tuple[Any, Any]:
    """Features and labels of a file's rows by ``flags`` of `distai-mpi train`, as they are handed to a model.

    ``features`` is the file of the features, where they are not in ``path``.
    """
    from distai_mpi.cli.build import load_data
    from distai_mpi.cli.train import command
    from distai_mpi.data import Loader

    words = ["--data", str(path) if features is None else f"{features},{path}", *FIXED, *flags]
    with command.make_context("train", words) as context:
        shard = load_data(context.params, Alone()).train
    kind = dict(seed=0, global_batch_size=1, dtype=np.float64, target_dtype=np.float64)
    parts = [(batch.x.copy(), batch.y.copy()) for batch in Loader(shard, rank=0, ranks=1, **kind).sequential()]
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def expected(path: Path, entry: dict[str, Any], features: Any) -> tuple[Any, Any, bool]:
    """Features, labels and whether values were filled in, as pandas reads them by ``entry``.

    ``features`` is the table of the features, where they are not in ``path``.
    """
    if features is not None:
        return features.to_numpy(), read_by_pandas(path, entry).to_numpy()[:, 0], False
    frame = read_by_pandas(path, entry)
    flags = parsed(entry)
    frame = frame[[name for name in frame.columns if not str(name).startswith("Unnamed: 0")]]
    frame, label = chosen(frame, flags)
    if flags.get("--dates") == "seconds":
        for name in frame.columns:
            if frame[name].dtype == object and name != label:
                frame[name] = seconds(frame[name])
    missing = flags.get("--missing")
    if missing == "drop":
        frame = frame[frame.notna().all(axis=1)]
    y = frame.pop(label)
    x = frame.astype(float)
    filled = missing in ("mean", "median") and bool(x.isna().any().any())
    if filled:
        x = x.fillna(x.mean() if missing == "mean" else x.median())
    return x.to_numpy(), y.to_numpy(), filled


def read_by_pandas(path: Path, entry: dict[str, Any]) -> Any:
    """The table in ``path``."""
    import pandas

    options: dict[str, Any] = dict(entry.get("pandas", {}))
    options["skiprows"] = options.pop("skip", 0)
    if options.get("header", 0) == -1:
        options["header"] = None
    return pandas.read_csv(path, float_precision="round_trip", low_memory=False, **options)


def chosen(frame: Any, flags: dict[str, str]) -> tuple[Any, Any]:
    """The columns that are features or label, and which is the label."""
    names = {str(name): name for name in frame.columns}
    numbers = {str(i): name for i, name in enumerate(frame.columns)}

    def named(flag: str) -> list[Any]:
        return [names[word] if word in names else numbers[word] for word in listed(flags.get(flag))]

    dropped = named("--drop")
    left = [name for name in frame.columns if name not in dropped]
    label = named("--label")[0] if "--label" in flags else left[-1]
    if "--columns" in flags:
        left = [name for name in left if name in named("--columns") or name == label]
    return frame[left].copy(), label


def seconds(column: Any) -> Any:
    """Dates as seconds since 1970 UTC."""
    import pandas

    times = pandas.to_datetime(column, utc=True, format="mixed")
    found = (times - pandas.Timestamp(0, tz="UTC")) / pandas.Timedelta(seconds=1)
    return found.where(times.notna())


def parsed(entry: dict[str, Any]) -> dict[str, str]:
    """The flags of ``entry`` and their values; of those without one the empty text."""
    found: dict[str, str] = {}
    for word in entry.get("flags", []):
        if word.startswith("--"):
            found[word] = ""
            last = word
        else:
            found[last] = word
    return found


def listed(words: str | None) -> list[str]:
    """Names with commas between them; some may stand in double quotes."""
    return [] if words is None else next(csv.reader(io.StringIO(words), skipinitialspace=True))


def check(path: Path, entries: dict[str, Any], name: str) -> str:
    """What was loaded, in words.

    Raises:
        Wrong: it is not what pandas reads, or there are too many flags.
    """
    entry = entries.get(name, {})
    flags, of = parsed(entry), entry.get("features")
    if len([flag for flag in flags if flag != "--drop"]) > MOST_FLAGS:
        raise Wrong(f"takes more than {MOST_FLAGS} flags besides --drop")
    paths = dict(tables())
    held, labels = loaded(path, list(entry.get("flags", [])), paths.get(of))
    x, y, filled = expected(path, entry, of and read_by_pandas(paths[of], entries[of]))
    if held.shape != x.shape:
        raise Wrong(f"{held.shape[0]} rows of {held.shape[1]} features, of pandas {x.shape[0]} of {x.shape[1]}")
    same = np.isclose(held, x, rtol=1e-12, atol=0) if filled else held == x
    if not same.all():
        row, column = np.argwhere(~same)[0]
        raise Wrong(f"{held[row, column]!r} in row {row}, feature {column}, of pandas {x[row, column]!r}")
    if y.dtype == object:  # words: classes by any numbers, but told apart alike
        pairs = Counter(zip(labels.tolist(), map(str, y.tolist()), strict=True))
        if not len(pairs) == len({number for number, _ in pairs}) == len({word for _, word in pairs}):
            raise Wrong("classes are not those of pandas")
    elif not np.array_equal(labels.astype(np.float64), y.astype(np.float64)):
        values = np.unique(y)
        if not (len(values) == 2 and np.array_equal(values[(labels > 0).astype(int)], y)):
            raise Wrong("labels are not those of pandas")
    return f"{x.shape[0]} x {x.shape[1]}"


def train(path: Path, entries: dict[str, Any], name: str) -> str:
    """Train on the file, see above; what was trained, in words.

    Raises:
        DistaiError: it is refused.
    """
    from distai_mpi.cli.train import command

    entry = entries.get(name, {})
    table = read_by_pandas(path, entry)
    last = len(table.columns) - 1
    label = entry.get("label", str(last if isinstance(table.columns[last], int) else table.columns[last]))
    of_label = table.iloc[:, last] if label.isdecimal() else table[label]
    model = "linear" if of_label.dtype.kind in "iuf" else "softmax"
    words = ["--data", str(path), "--label", label, "--model", model, *TRAINING]
    if "features" in entry:  # of labels alone
        words = ["--data", f"{dict(tables())[entry['features']]},{path}", "--model", model, *TRAINING]
    status = command.main(words, standalone_mode=False)
    if status:
        raise Wrong(f"exit status {status}")
    return f"--label {label} --model {model}"


def main() -> int:
    """Check every file and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="files with this in their name")
    parser.add_argument("-q", "--quiet", action="store_true", help="tell of what is not right alone")
    parser.add_argument("--train", action="store_true", help="train on each file instead")
    options = parser.parse_args()
    from distai_mpi.errors import DistaiError

    entries = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    _, missing = folders()
    counts: Counter[str] = Counter()
    for name, path in tables():
        if options.only not in name:
            continue
        entry = entries.get(name, {})
        words = "" if options.train else shlex.join(entry.get("flags", []))
        try:
            said, end = (
                (train(path, entries, name), "trained") if options.train else (check(path, entries, name), "right")
            )
        except DistaiError as error:
            said, end = str(error), "refused"
        except Wrong as error:
            said, end = str(error), "WRONG"
        except Exception as error:
            said, end = f"{type(error).__name__}: {error}", "CRASHED"
        if name not in entries:
            said += " (not in packaged_tables.toml)"
        counts[end] += 1
        if not (options.quiet and end in ("right", "trained")):
            print(f"{end}: {name} {words}\n    {said}", flush=True)
    for package in missing:
        print(f"missing: pip install {package}")
    print(", ".join(f"{count} {end}" for end, count in counts.most_common()))
    if options.train:
        return int(bool(missing) or counts["trained"] < (1 if options.only else FEWEST_TRAINED))
    return int(bool(missing) or set(counts) - {"right"} != set())


if __name__ == "__main__":
    sys.exit(main())
