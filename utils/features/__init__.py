"""Stored features of both networks."""
