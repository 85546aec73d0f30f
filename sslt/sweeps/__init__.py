"""Sweeps (`-m`): a command over several values, its cells in numbered run folders, taken up where they stopped, and a table at the end."""
