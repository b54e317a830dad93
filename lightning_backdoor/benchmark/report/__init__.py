"""The report of a grid: the HTML page, its figures and sections, and its table in LaTeX and Markdown."""
