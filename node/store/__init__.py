"""The database: the truth about every instance, series, job and delivery."""
