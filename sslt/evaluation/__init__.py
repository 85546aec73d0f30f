"""Measures of predictions and of features, most of them pure functions on tensors."""
