"""Training: the multi-scale VQVAE (tokenizer) and the transformer."""
