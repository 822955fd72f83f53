"""fasttrain: stimulative training of residual networks, made cheap."""

__version__ = "0.1.0"
