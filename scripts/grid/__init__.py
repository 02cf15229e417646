"""Grids of runs: which runs there are, how they are made, and what they tell."""
