"""Scoring, and what a score is compared with."""
