"""Many clients in a few processes: one table divided among them, one warm model that trains them in turn, sums for updates."""
