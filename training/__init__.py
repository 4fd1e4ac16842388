"""Training recipes of the bundled small model. Needs the extra `rexthinker-edge[training]`."""
