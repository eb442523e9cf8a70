"""`python -m service` and the console script."""

import os
import sys


def main() -> None:
    # numpy reads this when it is first imported: its threads wait for each other on a busy machine, and a look-up
    # in one namespace is a few microseconds' work for one of them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from service.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
