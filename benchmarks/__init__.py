"""Speed and quality, measured from the outside."""
