"""Full-batch solvers on a model and the rows of all ranks: L-BFGS, Newton-CG, Newton."""

from .methods import check_exchange, choose, keeps_whole
from .steps import SolverRun, bind, check_memory

__all__ = ["SolverRun", "bind", "check_exchange", "check_memory", "choose", "keeps_whole"]
