"""What became of every row: counted, listed, drawn."""
