"""`python -m vitrail.cli`, where the command itself is not on the path."""

from vitrail.cli import main

if __name__ == "__main__":
    main()
