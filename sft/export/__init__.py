"""A trained model on its way out: merged into its base, loaded again, and served elsewhere."""
