"""The one error that says a checkpoint cannot be used."""


class CheckpointError(ValueError):
    """The content of a checkpoint is invalid. The message names the file if it is known."""
