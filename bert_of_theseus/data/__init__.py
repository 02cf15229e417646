"""Labelled texts: what a task is, its examples from files, their features, and scores. Knows nothing of replacing."""
