"""Nouns and rules. Imports the standard library, numpy and pydantic only."""
