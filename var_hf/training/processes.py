"""How many processes train together, and which of them this is."""

from var_hf.processes import process_state as process_state
