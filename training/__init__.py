"""Training recipes of the models that Vitrail ships: in the repository, not in the package."""
