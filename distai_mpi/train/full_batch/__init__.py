"""Methods that see all rows in every iteration and branch on sums over the ranks alone: L-BFGS, Newton-CG, Newton."""

from .methods import choose, keeps_whole, make_steps
from .separable import without_optimum

__all__ = ["choose", "keeps_whole", "make_steps", "without_optimum"]
