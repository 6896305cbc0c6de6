"""The Hugging Face hub: whether it is reachable, its errors, and pushing."""
