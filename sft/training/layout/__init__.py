"""The batch layout: the cheapest one that reproduces the model's own losses, determined before the first step."""
