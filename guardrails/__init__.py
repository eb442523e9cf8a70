"""What is wrong in a text, and what to do about it."""
