"""The commands of the command line: ``fit``, ``validate``, ``test`` and ``predict``; ``poison``; ``scan``."""
