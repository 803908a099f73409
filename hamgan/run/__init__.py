"""A run: what its folder holds, and what its records mean. Knows no network."""
