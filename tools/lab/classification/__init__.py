"""Stored runs of classifiers, their tables and plots, and throughput."""
