"""Declarative search spaces, one YAML file each."""
