"""How fast the project is, measured beside the published algorithm and beside what a user would pick instead."""
