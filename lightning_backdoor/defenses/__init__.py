"""Defenses, one algorithm a file; tensors and strings in and out, no Lightning."""
