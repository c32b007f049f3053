"""How the gradient of a global batch comes to the ranks that own its slices."""
