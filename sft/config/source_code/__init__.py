"""Reading the source of the classes that a config names, without importing them."""
