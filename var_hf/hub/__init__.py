"""Push, pull and verify repositories on the Hugging Face Hub. Knows files, no model class."""

from var_hf.hub.errors import HubError
from var_hf.hub.pull import pull_everything, pull_pipeline, verified_place
from var_hf.hub.push import push_folder, push_model

__all__ = [
    "HubError",
    "pull_everything",
    "pull_pipeline",
    "push_folder",
    "push_model",
    "verified_place",
]
