"""Training: the loop, evaluation, progress and what a run leaves behind."""

from .calibrate import calibrate
from .callbacks import Callback
from .evaluation import Evaluation, evaluate
from .loop import fit
from .run import Result

__all__ = ["Callback", "Evaluation", "Result", "calibrate", "evaluate", "fit"]
