"""Annotation files: reading, class statistics, repeat factors and checking."""
