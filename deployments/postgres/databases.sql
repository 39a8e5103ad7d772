-- Run once by PostgreSQL's image, when its volume is empty: one database for each server, owned by POSTGRES_USER.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
