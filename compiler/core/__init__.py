"""What everything stands on: the IR, its operations and passes' tools, what a target is, how values are stored."""
