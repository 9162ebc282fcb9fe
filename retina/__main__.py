"""`python -m retina` is `retina`."""

from retina.cli import main

if __name__ == "__main__":
    main()
