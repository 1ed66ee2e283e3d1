"""The drawn world of the demo: pictures, captions, a judge of captions, and the small weights that ship with it."""
