"""Measuring models: image quality, and what published protocols ask for."""
