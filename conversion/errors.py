"""The error of an unusable checkpoint."""


class CheckpointError(ValueError):
    """The content of a checkpoint is invalid. The message names the file if it is known."""
