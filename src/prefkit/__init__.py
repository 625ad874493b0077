"""Preference learning: from any preference feedback to preference models, aligned policies and a diagnosis of both."""

__version__ = "0.1.0"
