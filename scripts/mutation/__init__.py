"""Mutation testing: which changes there are, and how one is tried."""
