"""What is measured for the documentation: `python -m benchmarks.NAME --help`, from the root of the repository."""
