"""Choosing tokens on the device."""
