"""Texts as token IDs: folders, tables, windows, and the tokenizers that make them."""
