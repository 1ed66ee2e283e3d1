"""The command `clipcap`, also `python -m clipcap`: captions photos."""

from clipcap.captioning import command
from clipcap.cli.status import run


def main() -> None:
    """Caption the pictures that the command line names, and exit."""
    run(command.main)


if __name__ == "__main__":
    main()
