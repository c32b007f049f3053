"""How vectors travel among the ranks: one object for each way, made once and used for all steps of a run."""
