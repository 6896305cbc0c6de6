"""Adapters: attached, found, started from the base's weights, and what they cover."""
