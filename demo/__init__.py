"""The demo: generate, edit and inspect images in a browser, locally or as a Gradio Space."""
