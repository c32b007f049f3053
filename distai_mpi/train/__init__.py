"""Training: the loop, evaluation, progress and what a run leaves behind."""

from .calibrate import calibrate
from .callbacks import Callback
from .checkpoint import Checkpoint
from .early_stopping import EarlyStopping
from .evaluation import Evaluation, evaluate
from .loop import fit
from .minimize import minimize
from .run import Result
from .tracing import Trace

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Evaluation",
    "Result",
    "Trace",
    "calibrate",
    "evaluate",
    "fit",
    "minimize",
]
