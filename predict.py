"""Caption photos: files and folders of pictures -> a caption for each.

    python predict.py --weights runs/base/base_weights.pt photos/ --output captions.jsonl
    torchrun --nproc-per-node 2 predict.py --weights runs/base/base_weights.pt photos/ --output captions.jsonl

A second run captions only the pictures that the output has no caption of yet. Exit status: 0 if all pictures have
captions, 1 if some failed (each is listed), 2 if nothing could be done, 70 for a fault of the program, 130 or 143 if it
was interrupted.

Where the package is installed, this is the command `clipcap`; both are `clipcap.captioning.command`.
"""

from collections.abc import Sequence

from clipcap.captioning import command
from clipcap.cli.status import run


def main(argv: Sequence[str] | None = None) -> int:
    """Caption the pictures that the command line names; returns the exit status."""
    return command.main(argv, "python predict.py")


if __name__ == "__main__":
    run(main)
