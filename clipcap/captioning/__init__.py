"""From photos to captions: the captioner, its rules and options, and the files that captions are written to."""
