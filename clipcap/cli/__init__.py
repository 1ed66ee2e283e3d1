"""The command line of all scripts: dataclasses become options, and an error becomes one clear sentence."""
