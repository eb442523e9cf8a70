"""Where what was found out about endpoints is kept."""
