"""APIs: each turns a body into an `Asked`, and deltas into its JSON or its events."""
