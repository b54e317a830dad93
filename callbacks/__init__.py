"""Lightning callbacks, imported as ``lightning_backdoor.callbacks``."""
