"""What a run leaves on disk: folder, provenance, checkpoints, tracking."""
