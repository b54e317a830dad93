"""Plant backdoors in text classifiers, defend against them, and compare the defenses."""

__version__ = "0.1.0"
