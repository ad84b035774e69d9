"""The page of runs: one HTML file without network, with curves, pictures, results and settings."""
