"""Judges of speech: what a recogniser understands, how clean it sounds, whose voice it is."""
