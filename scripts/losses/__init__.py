"""What `check_against_peers.py` compares: one function an objective, which gives both losses of one draw."""
