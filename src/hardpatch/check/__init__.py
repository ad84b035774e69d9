"""A look at every image of a set before training."""
