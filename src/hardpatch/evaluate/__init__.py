"""Measurements of a run: frozen features, difficulty, embeddings."""
