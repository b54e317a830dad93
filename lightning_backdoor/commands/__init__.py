"""The commands, one per file: ``fit`` and its like, ``poison``, ``scan``."""
