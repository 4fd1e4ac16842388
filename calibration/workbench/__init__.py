"""A procedural world of things on a bench, standing in for HumanRef."""
