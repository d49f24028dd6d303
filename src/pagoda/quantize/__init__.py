"""Models to smaller models: formats and methods as rows of a table, one job that runs any of them safely."""
