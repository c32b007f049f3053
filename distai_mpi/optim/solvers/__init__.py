"""Full-batch solvers: methods that see the whole objective in every iteration, on a `Problem` that evaluates it."""
