"""Grounded vision-language answers on the edge."""
