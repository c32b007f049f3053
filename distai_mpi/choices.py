"""What settings may be, where the command and the library must agree; imports nothing, so that --help is quick."""

from __future__ import annotations

MISSING = ("refuse", "mean", "median", "drop")  # what is done about values that are not there
DATES = ("refuse", "seconds", "calendar")  # what dates and timestamps become
METRICS = {  # names of result.json and of early stopping, and whether more is better
    "loss": False,
    "accuracy": True,
    "log_loss": False,
    "auc": True,
    "mae": False,
    "rmse": False,
    "r2": True,
}
