"""What `bench_pretrain.py` measures: sslt itself (ours), what it is held against (bare, lightly_images, hugging_face), and the clock."""
