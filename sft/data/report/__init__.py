"""The report on every row: counts, lists, pictures."""
