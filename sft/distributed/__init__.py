"""The processes of a distributed run: collectives, coordinated shutdown, and sharded weights."""
