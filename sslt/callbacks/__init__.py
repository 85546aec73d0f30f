"""What watches training: probes, checkpoints, curves, progress, guards."""
