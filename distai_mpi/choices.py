"""What settings may be, where the command and the library must agree; imports nothing, so that --help is quick."""

from __future__ import annotations

MISSING = ("refuse", "mean", "median", "drop")  # what is done about values that are not there
DATES = ("refuse", "seconds", "calendar")  # what dates and timestamps become
# The losses of the linear models that the command knows by name: modules of `models.losses`.
LOSSES_OF_MODELS = {"linear": "squared", "logistic": "logistic", "softmax": "softmax"}
MODELS = (*LOSSES_OF_MODELS, "mlp")
# Names of result.json and of early stopping, and whether more is better.
METRICS = {"loss": False, "accuracy": True, "log_loss": False, "auc": True, "mae": False, "rmse": False, "r2": True}
