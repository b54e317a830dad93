"""Showing a grid: the page, its figures, the table on the terminal, LaTeX and Markdown."""
