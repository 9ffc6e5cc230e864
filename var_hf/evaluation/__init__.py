"""Evaluation of models: image quality metrics and the published protocols."""
