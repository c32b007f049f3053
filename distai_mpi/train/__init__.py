"""Training: the loop, evaluation, progress and what a run leaves behind."""

from .balance import Balance
from .calibrate import calibrate
from .callbacks import Callback
from .checkpoint import Checkpoint
from .early_stopping import EarlyStopping
from .evaluation import Evaluation, evaluate
from .l1_path import PathPoint, l1_path
from .loop import fit
from .minimize import minimize
from .run import Result
from .state import TrainState
from .tracing import Trace

__all__ = [
    "Balance",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Evaluation",
    "PathPoint",
    "Result",
    "Trace",
    "TrainState",
    "calibrate",
    "evaluate",
    "fit",
    "l1_path",
    "minimize",
]
