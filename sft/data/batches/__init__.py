"""From rows to batches: packed, collated, by tokens, for one of several processes."""
