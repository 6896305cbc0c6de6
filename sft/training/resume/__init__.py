"""Whether a start is a new run, goes on from a checkpoint, is finished, or is refused."""
