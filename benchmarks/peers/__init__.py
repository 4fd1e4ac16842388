"""The same work side by side: this runtime and the systems a user would pick instead."""
