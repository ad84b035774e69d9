"""Tables of the paper as runs: every row is trained and measured in the same way, and the results become a table."""
