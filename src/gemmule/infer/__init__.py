"""Generating and scoring text."""
