"""A simulated job: many clients on one machine, or on a cluster, each with a part of one table."""
