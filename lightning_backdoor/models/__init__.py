"""Other people's networks: loaded safely, read from GGUF, given LoRA, read in batches of similar length."""
