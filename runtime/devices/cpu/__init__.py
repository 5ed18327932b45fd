"""The CPU: its features, kernel libraries, mapped weights."""
