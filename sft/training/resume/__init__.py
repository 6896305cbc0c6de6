"""Whether a run is new, resumed from a checkpoint, already finished, or refused."""
