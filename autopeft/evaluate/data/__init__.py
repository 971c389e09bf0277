"""Reading data sets, checking them, and cutting them into batches."""
