"""Search spaces: YAML files, conditions, and binding to a model's layout."""
