"""Telling a URL."""
