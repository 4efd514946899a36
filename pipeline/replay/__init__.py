"""Captured soft targets become a stream again: on another cluster, or under another name."""
