"""Arrays larger than memory: rows over many files of fixed rows, written one by one, read where they lie."""
