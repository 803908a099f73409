"""A page to play with: pictures of one checkpoint, drawn as its controls say, over HTTP."""
