"""In which order samples come: batches by random access, mixed, joined, of few labels, or as episodes."""
