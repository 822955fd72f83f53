"""`fasttrain report`: runs as one HTML page that needs nothing else; reading, drawing, page."""

from .write import write_report

__all__ = ["write_report"]
