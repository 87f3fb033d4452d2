"""Whom a student can learn from: models at hand, of whatever kind."""
