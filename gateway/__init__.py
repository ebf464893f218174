"""Gatepass gateway: everything that decides, sends and records."""
