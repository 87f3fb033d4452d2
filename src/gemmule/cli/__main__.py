"""python -m gemmule.cli."""

from gemmule.cli import main

if __name__ == "__main__":
    main()
