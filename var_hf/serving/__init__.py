"""The HTTP service of `var-hf serve`: continuous batching over scales, replicas on Ray Serve.

- `batching`: one model's queue of pictures and the passes that they share; knows no server.
- `protocol`: requests and answers of the HTTP API.
- `api`: the HTTP application, over anything that draws; knows no Ray.
- `replicas`: the model and the application as deployments of Ray Serve.
- `server`: starts them on this machine and drains them at the end.
"""
