"""The commands of the command line: ``fit`` and its like, ``poison``, ``scan``, ``list`` and ``completion``."""
