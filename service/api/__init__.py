"""What clients speak: one module a dialect."""
