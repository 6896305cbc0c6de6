"""From rows to batches: packing, collating, limits by tokens, the part of one rank."""
