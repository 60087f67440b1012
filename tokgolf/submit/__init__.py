"""Submissions: scored runs in, a folder in the challenge's record format out."""

from tokgolf.submit.claim import Labels
from tokgolf.submit.submission import submit

__all__ = ["Labels", "submit"]
