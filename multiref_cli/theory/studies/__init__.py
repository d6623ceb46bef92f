"""The studies of the laboratory, one module each with `run(settings) -> Study`."""
