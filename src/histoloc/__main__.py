"""`python -m histoloc`."""

from histoloc.cli.main import main

if __name__ == "__main__":
    main()
