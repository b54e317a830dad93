"""What the library costs on a GPU, in one command of at most nine minutes: ``python -m tests.measurements.gpu``.

Everything is made here: texts, tokenizers and networks with random weights, so that nothing is downloaded. Where the
packages of MiniLM and SmolLM2 are installed, these are measured; otherwise networks of their shapes.
"""
