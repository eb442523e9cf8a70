"""One detector a module; they do not know each other."""
