"""One short script a verb, read top to bottom: build the parts, run, write the results."""
