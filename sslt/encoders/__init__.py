"""What turns samples into features: the same interface for pixels and words."""
