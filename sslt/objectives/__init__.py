"""What is minimised: each objective is one file, modality-neutral wherever its maths is."""
