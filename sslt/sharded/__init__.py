"""Models of which every rank holds a part: FSDP (fully sharded data parallel), and checkpoints that any number of ranks takes up."""
