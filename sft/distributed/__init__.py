"""The processes that train one run together: what they agree on, how they end together, and sharded weights."""
