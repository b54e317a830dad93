"""Options of commands: reading, correcting and checking them, their help, and their errors in one line."""
