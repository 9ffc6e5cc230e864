"""The one error that says a checkpoint cannot be used."""


class CheckpointError(ValueError):
    """The content of a checkpoint is not what it should be; the message names the file where it is known."""
