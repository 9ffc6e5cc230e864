"""Original checkpoints to ours and back, as state dicts and config values; no model classes."""
