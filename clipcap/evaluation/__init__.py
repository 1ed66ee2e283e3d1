"""Models compared on pictures they have not seen: scores, metrics, the report page, people's ratings."""
