"""Grids of datasets, models, attacks, defenses and seeds, run from one file and compared in one table."""
