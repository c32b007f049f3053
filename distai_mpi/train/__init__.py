"""Training: the loop, evaluation, progress and what a run leaves behind."""

from .calibrate import calibrate
from .callbacks import Callback
from .checkpoint import Checkpoint
from .evaluation import Evaluation, evaluate
from .loop import fit
from .minimize import minimize
from .run import Result

__all__ = ["Callback", "Checkpoint", "Evaluation", "Result", "calibrate", "evaluate", "fit", "minimize"]
