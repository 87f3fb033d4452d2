"""Recipes: text is filtered, cleaned, deduplicated and split by stages in a fixed order."""
