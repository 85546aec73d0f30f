"""Measures of predictions and of features, as pure functions on tensors."""
