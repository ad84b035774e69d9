"""Configuration of a pre-training run: its settings, their checks, and the model that they describe."""
