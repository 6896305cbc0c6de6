"""The operating system: cores, processes, signals."""
