"""The paper's tables as runs: every row trained and measured alike, and the table that comes out."""
