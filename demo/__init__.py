"""The demo: draw, edit and look inside in a browser. A Gradio Space that can be pushed as it is."""
