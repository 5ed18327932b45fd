"""Devices that run a plan, one folder a kind, and what they share."""
