"""What `bench_pretrain.py` measures: sslt itself (ours), what it is held against (peers), and the clock (rounds)."""
