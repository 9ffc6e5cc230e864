"""The pipelines: from class labels to images."""
