"""Batch prediction: rows of any number through a registered model, into Parquet files or a table, each row once."""
