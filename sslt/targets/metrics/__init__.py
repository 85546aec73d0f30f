"""Metrics of a whole split, each equal to its reference implementation."""
