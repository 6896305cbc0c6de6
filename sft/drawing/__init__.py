"""Pictures: the style, the axes, heat maps, and a run's curves."""
