"""The commands that run one thing: ``fit`` and its like, ``poison``, ``scan``, ``list``, ``completion``; and their parts."""
