"""The runtime: loads an artifact and generates text from it."""
