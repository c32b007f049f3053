"""Full-batch solvers on a model and the rows of all ranks: L-BFGS, Newton-CG, Newton."""

from .methods import choose, keeps_whole
from .separable import without_optimum
from .steps import FullBatchSteps

__all__ = ["FullBatchSteps", "choose", "keeps_whole", "without_optimum"]
