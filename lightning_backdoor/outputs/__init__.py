"""What one run leaves behind: the outcome of each row, the token view, a table on the terminal, W&B media."""
