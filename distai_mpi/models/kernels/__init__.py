"""The inner loops of the models, one module per kind of processor."""
