"""One retryable step of the pipeline a file: references to artifacts in, references out."""
