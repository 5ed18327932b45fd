"""The compiler: from a checkpoint folder to an artifact for one target."""
