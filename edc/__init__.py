"""edc: turn a deep ensemble into one deployable network, with the evidence."""

__version__ = "0.1.0"
