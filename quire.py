"""Quire public face."""
