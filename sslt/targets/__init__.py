"""What there is to tell of a sample, a class: the objective that learns it, solvers on features, and cheap baselines."""
