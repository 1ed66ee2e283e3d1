"""Models compared on pictures that they have not seen: scores, metrics, the report page, and people's ratings."""
