"""`gemmule` and `python -m gemmule`: Ctrl-C is one line from the first import on."""

import sys


def main() -> None:
    """Runs the command line, see gemmule.cli."""
    try:
        from gemmule.cli import main as run
        from gemmule.runtime.openmp import spin_briefly

        spin_briefly()
    except KeyboardInterrupt:
        print("gemmule: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
