"""What `python -m benchmarks` runs."""

from benchmarks.run import main
from clipcap.cli.status import run

if __name__ == "__main__":  # worker processes import this file too
    run(main)
