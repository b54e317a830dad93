"""Reports of a grid: the HTML page, its figures, the terminal's table, LaTeX and Markdown."""
