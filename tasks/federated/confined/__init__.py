"""Running a model's source in a process of its own that can reach nothing: no network, no secrets, no other process."""
