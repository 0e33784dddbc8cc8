"""Clients of a hub."""
