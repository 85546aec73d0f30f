"""Living with a result: smaller, exported, measured, served."""
