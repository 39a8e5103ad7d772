"""The report of a job: from its manifests and records to one HTML file that needs nothing else."""
