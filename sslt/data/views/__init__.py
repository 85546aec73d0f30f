"""How a batch is seen: augmentations, crops, hidden words, and the corruptions of tests."""
