"""Gatepass web."""
