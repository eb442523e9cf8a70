"""`python -m service` and the console script."""

import sys

from service.cli import run


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
