"""Decides which rows run together."""
