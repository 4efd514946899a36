"""Captured streams: soft targets in Avro files, an index of their orders, and what the folder holds."""
