"""Writing what other tools load: adapters, recipes, cards, tables."""
