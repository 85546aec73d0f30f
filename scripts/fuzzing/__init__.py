"""What `fuzz.py` throws at sslt (commands, folders, files) and how it sees what became of it (runner, watch, outcomes)."""
