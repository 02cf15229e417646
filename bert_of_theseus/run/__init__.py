"""The harness: what makes a run safe to start, stop, resume and read. It knows nothing of the method."""
