"""The demo's drawn world: pictures, captions, a judge of captions, and small weights that ship with it."""
