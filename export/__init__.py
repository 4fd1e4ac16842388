"""Checkpoints in, bundle out. Needs the extra `rexthinker-edge[export]`."""
