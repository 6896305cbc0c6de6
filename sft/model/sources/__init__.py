"""Where models come from: a directory, the hub, the embedded one, and tiny ones made here."""
